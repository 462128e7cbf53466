//! Memory that is kept from step to step.

use dfdx::prelude::Cpu;

use super::adapters::LayerAdapters;
use super::buffer::Buffer;
use super::gradients::Gradients;
use super::layer::{Activations, Scratch};
use super::rope::Rope;
use super::sizes::Sizes;
use super::weights::{LayerWeights, Operands, Weights};
use crate::model::llama::Llama;

/// Gradients of a layer, each of a part of the positions. Those of wo are transposed.
#[derive(Default)]
pub(super) struct Parts {
    pub weights: Vec<LayerWeights>,
    pub adapters: Vec<LayerAdapters>,
}

/// What a model keeps from step to step.
#[derive(Default)]
pub struct Workspace {
    shape: (usize, usize), // sequences and length that the memory is for
    pub(super) weights: Weights,
    pub(super) operands: Operands,
    pub(super) adapters: Vec<LayerAdapters>, // of each layer, empty without adapters
    pub(super) gradients: Gradients,         // until they are added to those on the tape
    pub(super) parts: Parts,
    pub(super) activations: Vec<Activations>,
    pub(super) scratch: Scratch,
    pub(super) xs: Vec<Buffer>, // input of each layer and of the last norm, (positions, dim)
    pub(super) last: usize,     // the index in `xs` of the last norm's input
    pub(super) logits: Buffer,  // logits of one group of positions
    pub(super) rope: Rope,
    /// Where each position's text begins, (sequences, padded); empty if every window is one text.
    pub(super) starts: Vec<u32>,
    pub(super) values: Vec<f32>, // of a parameter while it is updated
}

impl Workspace {
    /// Takes the weights, and clean memory if the shape changes: what is padding must be zero.
    pub(super) fn load(&mut self, model: &Llama<Cpu>, sizes: &Sizes, backward: bool) {
        let shape = (sizes.sequences, sizes.length);
        if self.shape != shape {
            let Workspace { weights, operands, adapters, gradients, values, .. } = std::mem::take(self);
            *self = Workspace {
                shape,
                weights,
                operands,
                adapters,
                gradients,
                values,
                rope: Rope::new(sizes),
                ..Workspace::default()
            };
        }
        rayon::scope(|_| {
            self.weights.load(model);
            self.adapters.resize_with(model.config.n_layers, Default::default);
            self.adapters.iter_mut().enumerate().for_each(|(l, adapters)| adapters.load(model, l));
            self.operands.load(&self.weights, sizes, backward);
        });
    }

    /// Takes where texts begin, from (sequences, length) or `None`. Padding goes on with the last.
    pub(super) fn set_starts(&mut self, sizes: &Sizes, starts: Option<&[u32]>) {
        self.starts.clear();
        for window in starts.into_iter().flat_map(|starts| starts.chunks_exact(sizes.length)) {
            self.starts.extend(window);
            let padding = sizes.padded - sizes.length;
            self.starts.extend(std::iter::repeat_n(window[sizes.length - 1], padding));
        }
    }

    /// Makes room for forward. To `keep` what backward needs, every layer has memory of its own;
    /// else two layers' inputs and one layer's activations are enough.
    pub(super) fn resize(&mut self, sizes: &Sizes, keep: bool) {
        let layers = sizes.config.n_layers;
        self.activations.resize_with(self.activations.len().max(if keep { layers } else { 1 }), Default::default);
        self.xs.resize_with(self.xs.len().max(if keep { layers + 1 } else { 2 }), Default::default);
        self.scratch.resize(sizes);
        for x in self.xs.iter_mut() {
            x.resize(sizes.positions() * sizes.config.dim);
        }
    }
}
