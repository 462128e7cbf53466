//! The layer from its input to its output.

use pulp::Arch;
use rayon::prelude::*;

use super::{Activations, Layer, Scratch};
use crate::model::cpu::amx::Right;
use crate::model::cpu::attention::Forward;
use crate::model::cpu::buffer::Buffer;
use crate::model::cpu::mat::{Mat, MatMut};
use crate::model::cpu::math::{rmsnorm, swiglu};
use crate::model::cpu::products::Transposed;
use crate::model::cpu::sizes::Sizes;
use crate::model::dropout::Place;

impl Layer<'_> {
    /// x_next = layer(x)
    pub fn forward(&self, x: &[f32], kept: &mut Activations, x_next: &mut [f32], scratch: &mut Scratch) {
        self.normalise(x, scratch);
        self.attend(&scratch.transposed, kept);
        self.feed_forward(x, kept, x_next);
    }

    /// xb = rmsnorm(x), and its transpose
    fn normalise(&self, x: &[f32], Scratch { xb, transposed, .. }: &mut Scratch) {
        let Sizes { config, length, block, products, .. } = *self.sizes;
        let (row, sequence) = (block * config.dim, length * config.dim);
        let sequences = (transposed, xb.par_chunks_mut(sequence), x.par_chunks(sequence));
        sequences.into_par_iter().for_each(|(transposed, xb, x)| {
            let rows = xb.par_chunks_mut(row).zip(x.par_chunks(row));
            rows.for_each(|(xb, x)| rmsnorm(xb, x, &self.weights.rms_att, config.norm_eps));
            transposed.load(products, Mat::new(xb, config.dim));
        });
    }

    /// qkv = xb wqkv, rotated; att = attention(qkv)
    fn attend(&self, xb_t: &[Transposed], Activations { qkv, att, lse, .. }: &mut Activations) {
        let Sizes { config, length, padded, products, .. } = *self.sizes;
        let (group, queries, kv_mul) = (self.sizes.group(), self.sizes.queries(), config.kv_mul());
        let head = config.head_size() * padded;
        let heads = (
            qkv.par_chunks_mut(group * padded),
            att.par_chunks_mut(queries * padded),
            lse.par_chunks_mut(kv_mul * padded),
        );
        heads.into_par_iter().enumerate().for_each(|(i, (qkv, att, lse))| {
            let (sequence, kv_head) = (i / config.n_kv_heads, i % config.n_kv_heads);
            let w = Mat::new(&self.weights.wqkv, config.dim).rows(kv_head * group..(kv_head + 1) * group);
            let mut out = MatMut::new(qkv, padded);
            products.multiply(out.block(0..group, 0..length), w, xb_t[sequence].right(products), false);
            self.rope.forward(self.sizes, qkv);
            let outputs = att.chunks_exact_mut(head).zip(lse.chunks_exact_mut(padded));
            for (j, (o, lse)) in outputs.enumerate() {
                Arch::new().dispatch(Forward { head: self.head(qkv, i, j), o, lse });
            }
        });
    }

    /// x2 = x + att wo; x_next = x2 + swiglu(rmsnorm(x2) w13) w2
    fn feed_forward(&self, x: &[f32], kept: &mut Activations, x_next: &mut [f32]) {
        let Sizes { config, block, products, .. } = *self.sizes;
        let (dim, hidden_dim, operands) = (config.dim, config.hidden_dim, self.operands);
        let Activations { att, x2, h13, .. } = kept;
        let rows = (
            x.par_chunks(block * dim),
            x2.par_chunks_mut(block * dim),
            h13.par_chunks_mut(block * 2 * hidden_dim),
            x_next.par_chunks_mut(block * dim),
        );
        rows.into_par_iter().enumerate().for_each_init(Buffer::default, |hb, (i, (x, x2, h13, x_next))| {
            let position = i * block;
            hb.resize(block * hidden_dim);
            let att = self.block(att, dim, position);
            self.residual(x2, x, (att, operands.wo_t.right(products)), Place::AttentionOut, position);
            rmsnorm(x_next, x2, &self.weights.rms_ffn, config.norm_eps);
            let xb = Mat::new(x_next, dim);
            products.multiply(MatMut::new(h13, 2 * hidden_dim), xb, operands.w13_t.right(products), false);
            swiglu(hb, h13, hidden_dim);
            let hb = Mat::new(hb, hidden_dim);
            self.residual(x_next, x2, (hb, operands.w2_t.right(products)), Place::FfnOut, position);
        });
    }

    /// y = x + dropout(a · b) for rows from `position` on
    fn residual(&self, y: &mut [f32], x: &[f32], (a, b): (Mat, Right), place: Place, position: usize) {
        let Sizes { config, products, .. } = *self.sizes;
        let Some(dropout) = self.dropout(place) else {
            y.copy_from_slice(x);
            return products.multiply(MatMut::new(y, config.dim), a, b, true);
        };
        products.multiply(MatMut::new(y, config.dim), a, b, false);
        dropout.apply(y, config.dim, position);
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}
