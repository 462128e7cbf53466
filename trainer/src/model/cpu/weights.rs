//! The weights, or their gradients, as plain slices that suit large products.

use dfdx::prelude::Cpu;
use infer_core::Config;
use infer_core::format::TensorName;
use rayon::prelude::*;

use super::amx::Panels;
use super::buffer::Buffer;
use super::mat::Mat;
use super::products::Transposed;
use super::sizes::Sizes;
use crate::io::tensors::Shape;
use crate::model::llama::{Adapters, Llama};

/// All weights, or their gradients.
#[derive(Default)]
pub(super) struct Weights {
    pub tok_emb: Buffer, // (vocab_size, dim)
    pub layers: Vec<LayerWeights>,
    pub rms_final: Buffer, // (dim)
    wcls: Buffer,          // (vocab_size, dim), empty if shared
}

/// The weights of a layer, or their gradients.
#[derive(Default)]
pub(super) struct LayerWeights {
    pub rms_att: Buffer, // (dim)
    /// (qkv, dim): for each key/value head its query heads, its key head, its value head.
    pub wqkv: Buffer,
    pub wo: Buffer,      // (dim, dim)
    pub rms_ffn: Buffer, // (dim)
    pub w13: Buffer,     // (2 * hidden_dim, dim): w1, then w3
    pub w2: Buffer,      // (dim, hidden_dim)
}

/// The weights as right-hand sides of products.
#[derive(Default)]
pub(super) struct Operands {
    pub layers: Vec<LayerOperands>,
    pub wcls_t: Transposed,
    pub wcls: Panels,
}

/// A layer's weights as right-hand sides of products: transposed in forward, as they are in
/// backward.
#[derive(Default)]
pub(super) struct LayerOperands {
    pub wo_t: Transposed,
    pub w13_t: Transposed,
    pub w2_t: Transposed,
    pub wqkv: Panels,
    pub w13: Panels,
    pub w2: Panels,
}

impl Weights {
    fn zeros(config: &Config) -> Weights {
        let table = config.vocab_size * config.dim;
        Weights {
            tok_emb: Buffer::zeros(table),
            layers: (0..config.n_layers).map(|_| LayerWeights::zeros(config)).collect(),
            rms_final: Buffer::zeros(config.dim),
            wcls: Buffer::zeros(if config.shared_classifier { 0 } else { table }),
        }
    }

    /// Zeros where backward adds; it writes the rest.
    pub fn clear(&mut self, config: &Config) {
        if self.layers.is_empty() {
            *self = Weights::zeros(config);
        }
        if !config.shared_classifier {
            self.tok_emb.fill(0.0);
        }
    }

    /// Takes the weights of the model.
    pub fn load(&mut self, model: &Llama<Cpu>) {
        if self.layers.is_empty() {
            *self = Weights::zeros(&model.config);
        }
        let Weights { tok_emb, layers, rms_final, wcls } = &mut *self;
        rayon::scope(|s| {
            s.spawn(|_| model.tensor(TensorName::TokEmb, 0).copy_into(tok_emb));
            model.tensor(TensorName::RmsFinal, 0).copy_into(rms_final);
            if !wcls.is_empty() {
                model.tensor(TensorName::Wcls, 0).copy_into(wcls);
            }
            layers.par_iter_mut().enumerate().for_each(|(l, layer)| {
                let mut values = Vec::new();
                for parameter in model.parameters.iter().filter(|p| p.shape.layer == l) {
                    // copy_into, the only way to read a tensor, reads it whole.
                    let n = parameter.shape.size();
                    layer.for_each_part(&model.config, &parameter.shape, |at, part| {
                        if part.len() == n {
                            return parameter.tensor.copy_into(part);
                        }
                        if at == 0 {
                            values.resize(n, 0.0);
                            parameter.tensor.copy_into(&mut values);
                        }
                        part.copy_from_slice(&values[at..at + part.len()]);
                    });
                }
                layer.merge(model, l);
            });
        });
        if let (Some(Adapters { lora, .. }), Some(rows)) = (&model.adapters, model.rows()) {
            lora.add_rows(self.classifier_mut(), &rows.as_vec(), model.config.dim);
        }
    }

    /// Calls `visit(start in the parameter, values)` for each contiguous part of a parameter.
    pub fn for_each_part(&mut self, config: &Config, shape: &Shape, mut visit: impl FnMut(usize, &mut [f32])) {
        match shape.name {
            TensorName::TokEmb => visit(0, &mut self.tok_emb),
            TensorName::RmsFinal => visit(0, &mut self.rms_final),
            TensorName::Wcls => visit(0, &mut self.wcls),
            _ => self.layers[shape.layer].for_each_part(config, shape, visit),
        }
    }

    pub fn classifier(&self) -> &[f32] {
        if self.wcls.is_empty() { &self.tok_emb } else { &self.wcls }
    }

    pub fn classifier_mut(&mut self) -> &mut [f32] {
        if self.wcls.is_empty() { &mut self.tok_emb } else { &mut self.wcls }
    }
}

impl LayerWeights {
    pub fn zeros(config: &Config) -> LayerWeights {
        let Config { dim, hidden_dim, .. } = *config;
        LayerWeights {
            rms_att: Buffer::zeros(dim),
            wqkv: Buffer::zeros((dim + 2 * config.kv_dim()) * dim),
            wo: Buffer::zeros(dim * dim),
            rms_ffn: Buffer::zeros(dim),
            w13: Buffer::zeros(2 * hidden_dim * dim),
            w2: Buffer::zeros(dim * hidden_dim),
        }
    }

    /// Adds the adapters of the model's layer.
    fn merge(&mut self, model: &Llama<Cpu>, layer: usize) {
        let Some(Adapters { lora, parameters }) = &model.adapters else { return };
        for [a, b] in parameters.as_chunks().0.iter().filter(|[a, _]| a.shape.layer == layer) {
            let (cols, rank) = (a.shape.cols, lora.rank);
            let shape = Shape { rows: b.shape.rows, ..a.shape };
            let (a, b) = (a.tensor.as_vec(), b.tensor.as_vec());
            self.for_each_part(&model.config, &shape, |at, part| {
                lora.merge(part, &a, &b[at / cols * rank..][..part.len() / cols * rank]);
            });
        }
    }

    /// See [`Weights::for_each_part`].
    fn for_each_part(&mut self, config: &Config, shape: &Shape, mut visit: impl FnMut(usize, &mut [f32])) {
        // Within each key/value head's rows of wqkv: where this tensor's begin, how many there are.
        let (head_size, kv_mul) = (config.head_size(), config.kv_mul());
        let (first, rows) = match shape.name {
            TensorName::RmsAtt => return visit(0, &mut self.rms_att),
            TensorName::Wo => return visit(0, &mut self.wo),
            TensorName::RmsFfn => return visit(0, &mut self.rms_ffn),
            TensorName::W1 => return visit(0, &mut self.w13[..shape.size()]),
            TensorName::W3 => return visit(0, &mut self.w13[shape.size()..]),
            TensorName::W2 => return visit(0, &mut self.w2),
            TensorName::Wq => (0, kv_mul * head_size),
            TensorName::Wk => (kv_mul * head_size, head_size),
            TensorName::Wv => ((kv_mul + 1) * head_size, head_size),
            _ => return,
        };
        let (first, part) = (first * config.dim, rows * config.dim);
        for (i, head) in self.wqkv.chunks_exact_mut((kv_mul + 2) * head_size * config.dim).enumerate() {
            visit(i * part, &mut head[first..first + part]);
        }
    }
}

impl Operands {
    /// Loads the weights. For backward it also packs the matrices that only backward multiplies by.
    pub fn load(&mut self, weights: &Weights, sizes: &Sizes, backward: bool) {
        self.layers.resize_with(sizes.config.n_layers, Default::default);
        for (operands, weights) in self.layers.iter_mut().zip(&weights.layers) {
            operands.load(weights, sizes, backward);
        }
        let wcls = Mat::new(weights.classifier(), sizes.config.dim);
        self.wcls_t.load(sizes.products, wcls);
        if backward {
            sizes.products.pack(&mut self.wcls, wcls);
        }
    }
}

impl LayerOperands {
    fn load(&mut self, weights: &LayerWeights, sizes: &Sizes, backward: bool) {
        let (Config { dim, hidden_dim, .. }, products) = (sizes.config, sizes.products);
        let (w13, w2) = (Mat::new(&weights.w13, dim), Mat::new(&weights.w2, hidden_dim));
        self.wo_t.load(products, Mat::new(&weights.wo, dim));
        self.w13_t.load(products, w13);
        self.w2_t.load(products, w2);
        if backward {
            products.pack(&mut self.wqkv, Mat::new(&weights.wqkv, dim));
            products.pack(&mut self.w13, w13);
            products.pack(&mut self.w2, w2);
        }
    }
}
