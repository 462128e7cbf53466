//! Memory that is kept from step to step.

use dfdx::prelude::Cpu;

use super::buffer::Buffer;
use super::layer::{Activations, Scratch};
use super::rope::Rope;
use super::sizes::Sizes;
use super::weights::{Operands, Weights};
use crate::model::llama::Llama;

/// What a model keeps from step to step.
#[derive(Default)]
pub struct Workspace {
    shape: (usize, usize), // sequences and length that the memory is for
    pub(super) weights: Weights,
    pub(super) operands: Operands,
    pub(super) gradients: Weights, // until they are added to those on the tape
    pub(super) activations: Vec<Activations>,
    pub(super) scratch: Scratch,
    pub(super) xs: Vec<Buffer>, // input of each layer and of the last norm, (positions, dim)
    pub(super) last: usize,     // the index in `xs` of the last norm's input
    pub(super) logits: Buffer,  // logits of one group of positions
    pub(super) rope: Rope,
}

impl Workspace {
    /// Takes the weights, and clean memory if the shape changes: what is padding must be zero.
    pub(super) fn load(&mut self, model: &Llama<Cpu>, sizes: &Sizes, backward: bool) {
        let shape = (sizes.sequences, sizes.length);
        if self.shape != shape {
            let Workspace { weights, operands, gradients, .. } = std::mem::take(self);
            *self = Workspace { shape, weights, operands, gradients, rope: Rope::new(sizes), ..Workspace::default() };
        }
        rayon::scope(|_| {
            self.weights.load(model);
            self.operands.load(&self.weights, sizes, backward);
        });
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
