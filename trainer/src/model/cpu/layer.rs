//! One transformer layer: what forward and backward share.

mod backward;
mod forward;

use super::adapters::LayerAdapters;
use super::attention::{Head, HeadDropout};
use super::buffer::Buffer;
use super::mat::Mat;
use super::products::Transposed;
use super::rope::Rope;
use super::sizes::Sizes;
use super::weights::{LayerOperands, LayerWeights};
use crate::model::batch::Options;
use crate::model::dropout::{Dropout, Place};

/// A layer in a step.
pub(super) struct Layer<'a> {
    pub sizes: &'a Sizes,
    /// Its number.
    pub index: usize,
    pub weights: &'a LayerWeights,
    pub operands: &'a LayerOperands,
    /// Empty if the model has none.
    pub adapters: &'a LayerAdapters,
    pub rope: &'a Rope,
    /// Where in its window each position's text begins, (sequences, padded). `None`: at 0.
    pub starts: Option<&'a [u32]>,
    pub options: &'a Options<'a>,
}

/// What backward needs of a layer.
#[derive(Default)]
pub(super) struct Activations {
    qkv: Buffer, // (sequences, qkv, padded), rotated; queries scaled
    att: Buffer, // (sequences, dim, padded)
    lse: Buffer, // (sequences, n_heads, padded)
    x2: Buffer,  // (positions, dim): input of the feed-forward half
    h13: Buffer, // (positions, 2 * hidden_dim)
}

/// Gradients of activations, and activations that backward computes again. One set serves all
/// layers.
#[derive(Default)]
pub(super) struct Scratch {
    pub dx: Buffer,     // (positions, dim): gradient of the residual stream
    pub xb: Buffer,     // (positions, dim): input of wqkv
    pub dy_att: Buffer, // (positions, dim): gradient of wo's output
    dqkv: Buffer,       // (sequences, qkv, padded)
    /// For each sequence (dim, length): xb in forward, dy_att in backward
    transposed: Vec<Transposed>,
    dwo: Buffer, // (dim in, dim out): gradient of wo, transposed
}

impl Activations {
    pub fn resize(&mut self, sizes: &Sizes) {
        let Sizes { config, sequences, padded, .. } = *sizes;
        self.qkv.resize(sequences * sizes.qkv() * padded);
        self.att.resize(sequences * config.dim * padded);
        self.lse.resize(sequences * config.n_heads * padded);
        self.x2.resize(sizes.positions() * config.dim);
        self.h13.resize(sizes.positions() * 2 * config.hidden_dim);
    }
}

impl Scratch {
    pub fn resize(&mut self, sizes: &Sizes) {
        let n = sizes.positions() * sizes.config.dim;
        for x in [&mut self.dx, &mut self.xb, &mut self.dy_att] {
            x.resize(n);
        }
        self.dqkv.resize(sizes.sequences * sizes.qkv() * sizes.padded);
        self.transposed.resize_with(sizes.sequences, Transposed::default);
    }
}

impl Layer<'_> {
    fn dropout(&self, place: Place) -> Option<Dropout> {
        Dropout::new(self.options.dropout, self.options.seed, place, self.index)
    }

    /// Query head `j` of task `i`, which has a key/value head of a sequence: rows of its qkv.
    fn head<'a>(&'a self, qkv: &'a [f32], i: usize, j: usize) -> Head<'a> {
        let Sizes { config, length, padded, .. } = *self.sizes;
        let kv_mul = config.kv_mul();
        let head = |j: usize| &qkv[j * config.head_size() * padded..][..config.head_size() * padded];
        let dropout = self.dropout(Place::Attention);
        let dropout = dropout.map(|dropout| HeadDropout { dropout, row: (i * kv_mul + j) * length });
        let sequence = i / config.n_kv_heads;
        let starts = self.starts.map(|starts| &starts[sequence * padded..][..padded]);
        Head { q: head(j), k: head(kv_mul), v: head(kv_mul + 1), padded, starts, dropout }
    }

    /// The block that begins at this position, (block, cols), of activations `(sequences, cols,
    /// padded)`.
    fn block<'a>(&self, x: &'a [f32], cols: usize, position: usize) -> Mat<'a> {
        let Sizes { length, padded, block, .. } = *self.sizes;
        let (sequence, t) = (position / length, position % length);
        Mat::new(&x[sequence * cols * padded..][..cols * padded], padded).cols(t..t + block).t()
    }
}
