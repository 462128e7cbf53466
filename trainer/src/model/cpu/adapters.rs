//! The adapters of a layer, or their gradients, in the shape of the fused matrices.
//!
//! With W' = W + B A, B having the scale in it, forward and backward compute with W' as if it were
//! a weight. Only where the gradient dW' = dyᵀ x would follow, of the size of W and a third of all
//! operations, there are those of the adapter: dB = dyᵀ (x Aᵀ) and dA = (dy B)ᵀ x.

use std::ops::Range;

use dfdx::prelude::Cpu;
use infer_core::Config;
use infer_core::format::TensorName;

use super::buffer::Buffer;
use super::mat::{Mat, MatMut};
use super::products::Products;
use crate::model::llama::Llama;

/// A matrix of [`LayerWeights`](super::weights::LayerWeights).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fused {
    Wqkv,
    Wo,
    W13,
    W2,
}

impl Fused {
    pub const ALL: [Fused; 4] = [Fused::Wqkv, Fused::Wo, Fused::W13, Fused::W2];

    /// The fused matrix that has this one, and the number of this one in it.
    pub fn of(name: TensorName) -> Option<(Fused, usize)> {
        Some(match name {
            TensorName::Wq => (Fused::Wqkv, 0),
            TensorName::Wk => (Fused::Wqkv, 1),
            TensorName::Wv => (Fused::Wqkv, 2),
            TensorName::Wo => (Fused::Wo, 0),
            TensorName::W1 => (Fused::W13, 0),
            TensorName::W3 => (Fused::W13, 1),
            TensorName::W2 => (Fused::W2, 0),
            _ => return None,
        })
    }

    /// The rows of each of the matrices in it, with that matrix's number. Those of one matrix come
    /// in the order in which it has them.
    fn rows(self, config: &Config) -> Vec<(Range<usize>, usize)> {
        let Config { dim, hidden_dim, n_kv_heads, .. } = *config;
        let (head_size, queries) = (config.head_size(), config.kv_mul() * config.head_size());
        match self {
            Fused::Wo | Fused::W2 => vec![(0..dim, 0)],
            Fused::W13 => vec![(0..hidden_dim, 0), (hidden_dim..2 * hidden_dim, 1)],
            Fused::Wqkv => {
                let group = |i| {
                    let k = i * (queries + 2 * head_size) + queries;
                    [(k - queries..k, 0), (k..k + head_size, 1), (k + head_size..k + 2 * head_size, 2)]
                };
                (0..n_kv_heads).flat_map(group).collect()
            }
        }
    }

    /// Rows, columns, and the number of matrices in it.
    fn shape(self, config: &Config) -> (usize, usize, usize) {
        let Config { dim, hidden_dim, .. } = *config;
        match self {
            Fused::Wqkv => (dim + 2 * config.kv_dim(), dim, 3),
            Fused::Wo => (dim, dim, 1),
            Fused::W13 => (2 * hidden_dim, dim, 2),
            Fused::W2 => (dim, hidden_dim, 1),
        }
    }
}

/// The adapters of a fused matrix, or their gradients.
#[derive(Default)]
pub(super) struct Adapter {
    pub a: Buffer, // (matrices * rank, cols)
    pub b: Buffer, // (rows, rank): the rows of all in the order of the fused matrix, times the scale
}

/// The adapters of a layer, or their gradients.
#[derive(Default)]
pub(super) struct LayerAdapters {
    fused: [Adapter; 4],
    /// Gradients of rms_att and rms_ffn, which nobody wants.
    pub norms: [Buffer; 2],
    rank: usize,
}

/// Memory for a block of positions: x Aᵀ and dy B, (block, matrices * rank).
#[derive(Default)]
pub(super) struct Low {
    x: Buffer,
    dy: Buffer,
}

impl LayerAdapters {
    pub fn zeros(config: &Config, rank: usize) -> LayerAdapters {
        let adapter = |fused: Fused| {
            let (rows, cols, n) = fused.shape(config);
            Adapter { a: Buffer::zeros(n * rank * cols), b: Buffer::zeros(rows * rank) }
        };
        LayerAdapters { fused: Fused::ALL.map(adapter), norms: [config.dim; 2].map(Buffer::zeros), rank }
    }

    pub fn get(&self, fused: Fused) -> &Adapter {
        &self.fused[fused as usize]
    }

    pub fn get_mut(&mut self, fused: Fused) -> &mut Adapter {
        &mut self.fused[fused as usize]
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Takes the adapters of a layer of the model.
    pub fn load(&mut self, model: &Llama<Cpu>, layer: usize) {
        let Some(adapters) = &model.adapters else { return };
        if self.rank == 0 {
            *self = LayerAdapters::zeros(&model.config, adapters.lora.rank);
        }
        let scale = adapters.lora.scale();
        let (pairs, _) = adapters.parameters.as_chunks();
        for [a, b] in pairs.iter().filter(|[a, _]| a.shape.layer == layer) {
            let (a_values, b_values) = (a.tensor.as_vec(), b.tensor.as_vec());
            self.for_each_part(&model.config, a.shape.name, |is_b, at, part| {
                let values = if is_b { &b_values } else { &a_values };
                part.copy_from_slice(&values[at..at + part.len()]);
                if is_b {
                    part.iter_mut().for_each(|x| *x *= scale);
                }
            });
        }
    }

    /// Calls `visit(whether it is of B, start in A or B, values)` for each contiguous part of a
    /// matrix's adapter.
    pub fn for_each_part(&mut self, config: &Config, name: TensorName, mut visit: impl FnMut(bool, usize, &mut [f32])) {
        let Some((fused, number)) = Fused::of(name) else { return };
        let (rank, (_, cols, _)) = (self.rank, fused.shape(config));
        let Adapter { a, b } = &mut self.fused[fused as usize];
        visit(false, 0, &mut a[number * rank * cols..][..rank * cols]);
        let mut at = 0;
        for (rows, _) in fused.rows(config).into_iter().filter(|(_, of)| *of == number) {
            let part = &mut b[rows.start * rank..rows.end * rank];
            visit(true, at, part);
            at += part.len();
        }
    }

    /// Writes the gradients of these `adapters`' matrix, or adds them if `add`, given its input x
    /// (n, cols) and the gradient dy (n, rows) of its output.
    pub fn backward(
        &mut self,
        (fused, config, products): (Fused, &Config, Products),
        adapters: &LayerAdapters,
        low: &mut Low,
        (dy, x): (Mat, Mat),
        add: bool,
    ) {
        let (rank, (_, cols, matrices)) = (adapters.rank, fused.shape(config));
        let (n, width) = (x.shape().0, matrices * rank);
        let Adapter { a, b } = adapters.get(fused);
        let Adapter { a: d_a, b: d_b } = &mut self.fused[fused as usize];
        low.x.resize(n * width);
        low.dy.resize(n * width);
        products.multiply(MatMut::new(&mut low.x, width), x, Mat::new(a, cols).t(), false);
        low.dy.fill(0.0);
        for (rows, number) in fused.rows(config) {
            let columns = number * rank..(number + 1) * rank;
            let dy = dy.cols(rows.clone());
            let b = Mat::new(b, rank).rows(rows.clone());
            products.multiply(MatMut::new(&mut low.dy, width).block(0..n, columns.clone()), dy, b, true);
            let mut d_b = MatMut::new(d_b, rank);
            products.multiply(d_b.block(rows, 0..rank), dy.t(), Mat::new(&low.x, width).cols(columns), add);
        }
        products.multiply(MatMut::new(d_a, cols), Mat::new(&low.dy, width).t(), x, add);
    }
}
