//! The gradients that a step sums: those of all weights, or those of adapters.

use infer_core::Config;

use super::adapters::{Fused, LayerAdapters, Low};
use super::buffer::Buffer;
use super::chunks::sum_parts;
use super::layer::Layer;
use super::mat::{Mat, MatMut, transpose};
use super::weights::{LayerWeights, Weights};
use crate::io::lora::{Lora, is_adapted};
use crate::io::tensors::Shape;

/// The gradients of a step.
pub(super) enum Gradients {
    Weights(Weights),
    Adapters(AdapterGradients),
}

/// The gradients of adapters.
pub(super) struct AdapterGradients {
    pub lora: Lora,
    pub layers: Vec<LayerAdapters>,
    pub rows: Buffer, // (ends, dim): of rows of the classifier
}

/// A sum of gradients of one layer: over all positions, or over a part of them.
pub(super) trait LayerGradients: Send + Sync {
    /// Memory as large as `like`.
    fn zeros(config: &Config, like: &Self) -> Self;

    /// The gradients of rms_att and rms_ffn, to add to.
    fn norms(&mut self) -> [&mut Buffer; 2];

    /// Writes the gradient of a matrix, given the gradient dy (n, rows) of its output and its input
    /// x (n, cols), or adds it if `add`.
    fn matrix(&mut self, layer: &Layer, fused: Fused, product: (Mat, Mat), low: &mut Low, add: bool);

    /// Takes the sum of the parts.
    fn sum(&mut self, config: &Config, parts: &[Self], scratch: &mut Buffer)
    where
        Self: Sized;
}

impl Default for Gradients {
    fn default() -> Self {
        Gradients::Weights(Weights::default())
    }
}

impl Gradients {
    /// Prepares for a step: zeros where backward adds. It writes the rest.
    pub fn clear(&mut self, config: &Config, lora: Option<Lora>) {
        match (&mut *self, lora) {
            (Gradients::Weights(weights), None) => weights.clear(config),
            (Gradients::Adapters(of), Some(lora)) if of.lora == lora => {}
            (_, None) => {
                *self = Gradients::default();
                self.clear(config, None);
            }
            (_, Some(lora)) => {
                let layers = (0..config.n_layers).map(|_| LayerAdapters::zeros(config, lora.rank));
                let rows = Buffer::zeros(lora.ends().count() * config.dim);
                *self = Gradients::Adapters(AdapterGradients { lora, layers: layers.collect(), rows });
            }
        }
    }

    /// The gradients of all weights, if they are wanted.
    pub fn weights(&mut self) -> Option<&mut Weights> {
        match self {
            Gradients::Weights(weights) => Some(weights),
            Gradients::Adapters(_) => None,
        }
    }

    /// Calls `visit(start in the parameter, factor, values)` for each contiguous part of a
    /// parameter's gradient, which is `factor` times these values. Of an adapter it is A or B, as
    /// `is_b` says.
    pub fn for_each_part(
        &mut self,
        config: &Config,
        (shape, is_b): (&Shape, bool),
        mut visit: impl FnMut(usize, f32, &mut [f32]),
    ) {
        match self {
            Gradients::Weights(weights) => weights.for_each_part(config, shape, |at, part| visit(at, 1.0, part)),
            Gradients::Adapters(AdapterGradients { rows, .. }) if !is_adapted(shape.name) => visit(0, 1.0, rows),
            Gradients::Adapters(AdapterGradients { lora, layers, .. }) => {
                let factor = if is_b { lora.scale() } else { 1.0 };
                layers[shape.layer].for_each_part(config, shape.name, |of_b, at, part| {
                    if of_b == is_b {
                        visit(at, factor, part);
                    }
                });
            }
        }
    }
}

impl LayerGradients for LayerWeights {
    fn zeros(config: &Config, _: &Self) -> Self {
        LayerWeights::zeros(config)
    }

    fn norms(&mut self) -> [&mut Buffer; 2] {
        [&mut self.rms_att, &mut self.rms_ffn]
    }

    /// That of wo is transposed, as its input comes so.
    fn matrix(&mut self, layer: &Layer, fused: Fused, (dy, x): (Mat, Mat), _: &mut Low, add: bool) {
        let Config { dim, hidden_dim, .. } = layer.sizes.config;
        let products = layer.sizes.products;
        match fused {
            Fused::Wqkv => products.multiply(MatMut::new(&mut self.wqkv, dim), dy.t(), x, add),
            Fused::Wo => products.multiply(MatMut::new(&mut self.wo, dim), x.t(), dy, add),
            Fused::W13 => products.multiply(MatMut::new(&mut self.w13, dim), dy.t(), x, add),
            Fused::W2 => products.multiply(MatMut::new(&mut self.w2, hidden_dim), dy.t(), x, add),
        }
    }

    fn sum(&mut self, config: &Config, parts: &[Self], dwo: &mut Buffer) {
        let dim = config.dim;
        dwo.resize(dim * dim);
        sum_parts(&mut self.rms_att, parts, |part| &part.rms_att);
        sum_parts(&mut self.wqkv, parts, |part| &part.wqkv);
        sum_parts(dwo, parts, |part| &part.wo);
        sum_parts(&mut self.rms_ffn, parts, |part| &part.rms_ffn);
        sum_parts(&mut self.w13, parts, |part| &part.w13);
        sum_parts(&mut self.w2, parts, |part| &part.w2);
        transpose(&mut self.wo, Mat::new(dwo, dim));
    }
}

impl LayerGradients for LayerAdapters {
    fn zeros(config: &Config, like: &Self) -> Self {
        LayerAdapters::zeros(config, like.rank())
    }

    fn norms(&mut self) -> [&mut Buffer; 2] {
        self.norms.each_mut()
    }

    fn matrix(&mut self, layer: &Layer, fused: Fused, product: (Mat, Mat), low: &mut Low, add: bool) {
        self.backward((fused, &layer.sizes.config, layer.sizes.products), layer.adapters, low, product, add);
    }

    fn sum(&mut self, _: &Config, parts: &[Self], _: &mut Buffer) {
        for fused in Fused::ALL {
            let sum = self.get_mut(fused);
            sum_parts(&mut sum.a, parts, |part| &part.get(fused).a);
            sum_parts(&mut sum.b, parts, |part| &part.get(fused).b);
        }
    }
}
