//! The layer from the gradient of its output to those of its input and of its weights.
//!
//! The halves of the layer run one after the other. In each, a task sums the weights' gradients
//! over a part of the positions, and products of a block's activations are taken while those are in
//! the cache.

use infer_core::Config;
use itertools::izip;
use pulp::Arch;
use rayon::prelude::*;

use super::{Activations, Layer, Scratch};
use crate::model::cpu::adapters::{Fused, Low};
use crate::model::cpu::attention::Backward;
use crate::model::cpu::buffer::Buffer;
use crate::model::cpu::gradients::LayerGradients;
use crate::model::cpu::mat::{Mat, MatMut};
use crate::model::cpu::math::{rmsnorm, rmsnorm_backward, swiglu_backward};
use crate::model::cpu::sizes::Sizes;
use crate::model::dropout::Place;

/// Scratch memory of a task on rows.
#[derive(Default)]
struct Rows {
    xb: Buffer,   // (block, dim)
    d_xb: Buffer, // (block, dim)
    dy: Buffer,   // (block, dim), in the feed-forward half
    hb: Buffer,   // (block, hidden_dim), in the feed-forward half
    low: Low,     // of adapters
}

/// A block of positions in the feed-forward half.
struct FfnBlock<'a> {
    position: usize,
    dx: &'a mut [f32],     // (block, dim)
    dy_att: &'a mut [f32], // (block, dim)
    h13: &'a mut [f32],    // (block, 2 * hidden_dim)
    x2: &'a [f32],         // (block, dim)
}

/// A block of positions in the attention half.
struct QkvBlock<'a> {
    dx: &'a mut [f32], // (block, dim)
    dy_att: Mat<'a>,   // (block, dim)
    x: &'a [f32],      // (block, dim)
    att: Mat<'a>,      // (block, dim)
    dqkv: Mat<'a>,     // (block, qkv)
}

impl Layer<'_> {
    /// On entry `scratch.dx` is the gradient of the layer's output, on return that of its input x.
    /// Destroys the activations. Sums the weights' gradients in `parts`, and writes them to `d`.
    pub fn backward<G: LayerGradients>(
        &self,
        x: &[f32],
        kept: &mut Activations,
        scratch: &mut Scratch,
        parts: &mut Vec<G>,
        d: &mut G,
    ) {
        if parts.is_empty() {
            let n = self.sizes.positions().div_ceil(self.sizes.part);
            parts.resize_with(n, || G::zeros(&self.sizes.config, d));
        }
        self.feed_forward_backward(kept, scratch, parts);
        self.attend_backward(kept, scratch);
        self.qkv_backward(x, &kept.att, scratch, parts);
        d.sum(&self.sizes.config, parts, &mut scratch.dwo);
    }

    /// Computes the gradient of x2 (in dx) and of att · wo (in dy_att) from that of the output (in
    /// dx).
    fn feed_forward_backward<G: LayerGradients>(
        &self,
        Activations { h13, x2, .. }: &mut Activations,
        scratch: &mut Scratch,
        parts: &mut [G],
    ) {
        let Sizes { config, block, part, .. } = *self.sizes;
        let (dim, hidden_dim) = (config.dim, config.hidden_dim);
        let Scratch { dx, dy_att, .. } = scratch;
        let tasks = (
            parts,
            dx.par_chunks_mut(part * dim),
            dy_att.par_chunks_mut(part * dim),
            h13.par_chunks_mut(part * 2 * hidden_dim),
            x2.par_chunks(part * dim),
        );
        let tasks = tasks.into_par_iter().enumerate();
        tasks.for_each_init(Rows::default, |rows, (i, (d, dx, dy_att, h13, x2))| {
            for x in [&mut rows.xb, &mut rows.d_xb, &mut rows.dy] {
                x.resize(block * dim);
            }
            rows.hb.resize(block * hidden_dim);
            d.norms()[1].fill(0.0);
            let blocks = izip!(
                dx.chunks_exact_mut(block * dim),
                dy_att.chunks_exact_mut(block * dim),
                h13.chunks_exact_mut(block * 2 * hidden_dim),
                x2.chunks_exact(block * dim)
            );
            for (j, (dx, dy_att, h13, x2)) in blocks.enumerate() {
                let position = i * part + j * block;
                self.feed_forward_block(FfnBlock { position, dx, dy_att, h13, x2 }, rows, d, j > 0);
            }
        });
    }

    /// Writes the gradients of w13 and w2 to `d`, or adds them if `add`.
    fn feed_forward_block<G: LayerGradients>(&self, block: FfnBlock, rows: &mut Rows, d: &mut G, add: bool) {
        let (weights, products) = (self.weights, self.sizes.products);
        let Config { dim, hidden_dim, norm_eps, .. } = self.sizes.config;
        let w2 = products.right(Mat::new(&weights.w2, hidden_dim), &self.operands.w2);
        let w13 = products.right(Mat::new(&weights.w13, dim), &self.operands.w13);
        let FfnBlock { position, dx, dy_att, h13, x2 } = block;
        let Rows { xb, d_xb, dy, hb, low } = rows;
        dy.copy_from_slice(dx);
        if let Some(dropout) = self.dropout(Place::FfnOut) {
            dropout.apply(dy, dim, position);
        }
        let dy = Mat::new(dy, dim);
        products.multiply(MatMut::new(hb, hidden_dim), dy, w2, false);
        swiglu_backward(h13, hb, hidden_dim);
        let dh13 = Mat::new(h13, 2 * hidden_dim);
        d.matrix(self, Fused::W2, (dy, Mat::new(hb, hidden_dim)), low, add);
        products.multiply(MatMut::new(d_xb, dim), dh13, w13, false);
        rmsnorm(xb, x2, &weights.rms_ffn, norm_eps);
        d.matrix(self, Fused::W13, (dh13, Mat::new(xb, dim)), low, add);
        rmsnorm_backward(dx, d.norms()[1], d_xb, (x2, &weights.rms_ffn, norm_eps));
        dy_att.copy_from_slice(dx);
        if let Some(dropout) = self.dropout(Place::AttentionOut) {
            dropout.apply(dy_att, dim, position);
        }
    }

    /// From dy_att to the gradient of qkv before the rotation
    fn attend_backward(&self, Activations { qkv, att, lse, .. }: &Activations, scratch: &mut Scratch) {
        let Sizes { config, length, padded, products, .. } = *self.sizes;
        let (group, queries, kv_mul) = (self.sizes.group(), self.sizes.queries(), config.kv_mul());
        let Scratch { dy_att, dqkv, transposed: dy_t, .. } = scratch;
        let sequences = dy_t.par_iter_mut().zip(dy_att.par_chunks(length * config.dim));
        sequences.for_each(|(dy_t, dy)| dy_t.load(products, Mat::new(dy, config.dim)));
        let heads = (
            dqkv.par_chunks_mut(group * padded),
            qkv.par_chunks(group * padded),
            att.par_chunks(queries * padded),
            lse.par_chunks(kv_mul * padded),
        );
        let heads = heads.into_par_iter().enumerate();
        heads.for_each_init(Buffer::default, |d_att, (i, (dqkv, qkv, att, lse))| {
            let (sequence, kv_head) = (i / config.n_kv_heads, i % config.n_kv_heads);
            let wo_t = Mat::new(&self.weights.wo, config.dim).t().rows(kv_head * queries..(kv_head + 1) * queries);
            d_att.resize(queries * padded);
            let mut out = MatMut::new(d_att, padded);
            products.multiply(out.block(0..queries, 0..length), wo_t, dy_t[sequence].right(products), false);

            let head = config.head_size() * padded;
            let (dq, dkv) = dqkv.split_at_mut(queries * padded);
            dkv.fill(0.0);
            let (dk, dv) = dkv.split_at_mut(head);
            let queries = izip!(
                att.chunks_exact(head),
                d_att.chunks_exact(head),
                lse.chunks_exact(padded),
                dq.chunks_exact_mut(head)
            );
            for (j, (o, d_o, lse, dq)) in queries.enumerate() {
                Arch::new().dispatch(Backward { head: self.head(qkv, i, j), o, d_o, lse, dq, dk, dv });
            }
            self.rope.backward(self.sizes, dqkv);
        });
    }

    /// From the gradients of qkv, and of x2 in dx, to that of x
    fn qkv_backward<G: LayerGradients>(&self, x: &[f32], att: &[f32], scratch: &mut Scratch, parts: &mut [G]) {
        let Scratch { dx, dy_att, dqkv, .. } = scratch;
        let Sizes { config, block, part, .. } = *self.sizes;
        let dim = config.dim;
        let tasks = (parts, dx.par_chunks_mut(part * dim), dy_att.par_chunks(part * dim), x.par_chunks(part * dim));
        let tasks = tasks.into_par_iter().enumerate();
        tasks.for_each_init(Rows::default, |rows, (i, (d, dx, dy_att, x))| {
            for x in [&mut rows.xb, &mut rows.d_xb] {
                x.resize(block * dim);
            }
            d.norms()[0].fill(0.0);
            let row = block * dim;
            let blocks = izip!(dx.chunks_exact_mut(row), dy_att.chunks_exact(row), x.chunks_exact(row));
            for (j, (dx, dy_att, x)) in blocks.enumerate() {
                let position = i * part + j * block;
                let att = self.block(att, dim, position);
                let dqkv = self.block(dqkv, self.sizes.qkv(), position);
                self.qkv_block(QkvBlock { dx, dy_att: Mat::new(dy_att, dim), x, att, dqkv }, rows, d, j > 0);
            }
        });
    }

    /// Writes the gradients of wo, transposed, and wqkv to `d`, or adds them if `add`.
    fn qkv_block<G: LayerGradients>(&self, block: QkvBlock, rows: &mut Rows, d: &mut G, add: bool) {
        let (weights, products) = (self.weights, self.sizes.products);
        let Config { dim, norm_eps, .. } = self.sizes.config;
        let wqkv = products.right(Mat::new(&weights.wqkv, dim), &self.operands.wqkv);
        let QkvBlock { dx, dy_att, x, att, dqkv } = block;
        let Rows { xb, d_xb, low, .. } = rows;
        d.matrix(self, Fused::Wo, (dy_att, att), low, add);
        products.multiply(MatMut::new(d_xb, dim), dqkv, wqkv, false);
        rmsnorm(xb, x, &weights.rms_att, norm_eps);
        d.matrix(self, Fused::Wqkv, (dqkv, Mat::new(xb, dim)), low, add);
        rmsnorm_backward(dx, d.norms()[0], d_xb, (x, &weights.rms_att, norm_eps));
    }
}
