//! One transformer layer, forward and backward.

use infer_core::Config;
use infer_core::format::TensorName;
use rayon::prelude::*;

use super::attention::{self, HeadDropout};
use super::buffer::Buffer;
use super::math::{self, View, matmul, rmsnorm, rmsnorm_backward, swiglu, swiglu_backward};
use super::{Rope, Sizes, drop_rows, transpose};
use crate::model::Options;
use crate::model::dropout::{Dropout, Place};

/// The weights of a layer, or their gradients, laid out for few and large products.
#[derive(Default)]
pub(super) struct Layer {
    rms_att: Buffer, // (dim)
    /// (qkv, dim): for each key/value head its query heads, its key head, its value head.
    wqkv: Buffer,
    wo: Buffer,      // (dim, dim)
    rms_ffn: Buffer, // (dim)
    w13: Buffer,     // (2 * hidden_dim, dim): w1, then w3
    w2: Buffer,      // (dim, hidden_dim)
}

/// Transposed weights.
#[derive(Default)]
pub(super) struct Transposed {
    wo: Buffer,  // (dim in, dim out)
    w13: Buffer, // (dim, 2 * hidden_dim)
    w2: Buffer,  // (hidden_dim, dim)
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

/// Gradients of activations, and activations that backward computes again. One set for all layers.
#[derive(Default)]
pub(super) struct Gradient {
    pub dx: Buffer,     // (positions, dim): gradient of the residual stream
    pub xb: Buffer,     // (positions, dim): input of wqkv
    xb_ffn: Buffer,     // (positions, dim): input of w1 and w3
    pub dy_att: Buffer, // (positions, dim): gradient of wo's output
    dy_ffn: Buffer,     // (positions, dim): gradient of w2's output
    hb: Buffer,         // (positions, hidden_dim): input of w2
    dqkv: Buffer,       // (sequences, qkv, padded)
    /// (sequences, dim, padded): xb in forward, dy_att in backward
    transposed: Buffer,
    dwo: Buffer, // (dim in, dim out): gradient of wo, transposed
}

impl Layer {
    pub fn zeros(config: &Config) -> Layer {
        let Config { dim, hidden_dim, .. } = *config;
        Layer {
            rms_att: Buffer::zeros(dim),
            wqkv: Buffer::zeros((dim + 2 * config.kv_dim()) * dim),
            wo: Buffer::zeros(dim * dim),
            rms_ffn: Buffer::zeros(dim),
            w13: Buffer::zeros(2 * hidden_dim * dim),
            w2: Buffer::zeros(dim * hidden_dim),
        }
    }

    /// Zeros where [`backward`] adds.
    pub fn clear(&mut self) {
        self.rms_att.fill(0.0);
        self.rms_ffn.fill(0.0);
    }

    /// See [`super::Weights::for_each_row`].
    pub fn for_each_part(
        &mut self,
        config: &Config,
        name: TensorName,
        len: usize,
        mut visit: impl FnMut(usize, &mut [f32]),
    ) {
        // Within each key/value head's rows of wqkv: where this tensor's begin, how many there are.
        let (head_size, kv_mul) = (config.head_size(), config.kv_mul());
        let (first, rows) = match name {
            TensorName::RmsAtt => return visit(0, &mut self.rms_att),
            TensorName::Wo => return visit(0, &mut self.wo),
            TensorName::RmsFfn => return visit(0, &mut self.rms_ffn),
            TensorName::W1 => return visit(0, &mut self.w13[..len]),
            TensorName::W3 => return visit(0, &mut self.w13[len..]),
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

impl Transposed {
    pub fn load(&mut self, weights: &Layer, config: &Config) {
        transpose(&mut self.wo, &weights.wo, config.dim);
        transpose(&mut self.w13, &weights.w13, config.dim);
        transpose(&mut self.w2, &weights.w2, config.hidden_dim);
    }
}

impl Activations {
    pub fn resize(&mut self, sizes: &Sizes) {
        let Config { dim, hidden_dim, n_heads, .. } = sizes.config;
        let Sizes { sequences, padded, .. } = *sizes;
        self.qkv.resize(sequences * sizes.qkv() * padded);
        self.att.resize(sequences * dim * padded);
        self.lse.resize(sequences * n_heads * padded);
        self.x2.resize(sizes.positions() * dim);
        self.h13.resize(sizes.positions() * 2 * hidden_dim);
    }
}

impl Gradient {
    pub fn resize(&mut self, sizes: &Sizes) {
        let n = sizes.positions() * sizes.config.dim;
        for x in [&mut self.dx, &mut self.xb, &mut self.xb_ffn, &mut self.dy_att, &mut self.dy_ffn] {
            x.resize(n);
        }
        self.hb.resize(sizes.positions() * sizes.config.hidden_dim);
        self.dqkv.resize(sizes.sequences * sizes.qkv() * sizes.padded);
        self.transposed.resize(sizes.sequences * sizes.config.dim * sizes.padded);
    }
}

/// x_next = layer(x). `gradient` is scratch.
pub(super) fn forward(
    sizes: &Sizes,
    l: usize,
    (weights, weights_t): (&Layer, &Transposed),
    rope: &Rope,
    x: &[f32],
    activations: &mut Activations,
    x_next: &mut [f32],
    gradient: &mut Gradient,
    options: &Options,
) {
    let Config { dim, hidden_dim, n_kv_heads, .. } = sizes.config;
    let Sizes { length, padded, block, .. } = *sizes;
    let Activations { qkv, att, lse, x2, h13 } = activations;
    let Gradient { xb, transposed: xb_t, .. } = gradient;
    let rows = xb.par_chunks_mut(block * dim).zip(x.par_chunks(block * dim));
    rows.for_each(|(xb, x)| rmsnorm(xb, x, &weights.rms_att));
    transpose_sequences(sizes, xb_t, xb);

    let (group, queries) = (sizes.group(), sizes.queries());
    let heads = qkv
        .par_chunks_mut(group * padded)
        .zip(att.par_chunks_mut(queries * padded))
        .zip(lse.par_chunks_mut(sizes.config.kv_mul() * padded));
    heads.enumerate().for_each(|(i, ((qkv, att), lse))| {
        let (sequence, head) = (i / n_kv_heads, i % n_kv_heads);
        let xb = View::new(&xb_t[sequence * dim * padded..], padded);
        let w = View::new(&weights.wqkv[head * group * dim..], dim);
        matmul((group, length, dim), qkv, padded, w, xb, false);
        rope.forward(sizes, qkv);
        attend(sizes, qkv, att, lse, |j| head_dropout(sizes, l, options, i, j));
    });

    let drop_att = Dropout::new(options.dropout, options.seed, Place::AttentionOut, l);
    let drop_ffn = Dropout::new(options.dropout, options.seed, Place::FfnOut, l);
    let rows = x2
        .par_chunks_mut(block * dim)
        .zip(h13.par_chunks_mut(block * 2 * hidden_dim))
        .zip(x_next.par_chunks_mut(block * dim))
        .zip(x.par_chunks(block * dim));
    rows.enumerate().for_each_init(Buffer::default, |hb, (i, (((x2, h13), x_next), x))| {
        let position = i * block;
        hb.resize(block * hidden_dim);
        let att = transposed(sizes, att, dim, position);
        let wo = View::new(&weights_t.wo, dim);
        residual(x2, x, |y, add| matmul((block, dim, dim), y, dim, att, wo, add), drop_att, position, dim);
        rmsnorm(x_next, x2, &weights.rms_ffn);
        let w13 = View::new(&weights_t.w13, 2 * hidden_dim);
        matmul((block, 2 * hidden_dim, dim), h13, 2 * hidden_dim, View::new(x_next, dim), w13, false);
        swiglu(hb, h13, hidden_dim);
        let (hb, w2) = (View::new(hb, hidden_dim), View::new(&weights_t.w2, dim));
        residual(x_next, x2, |y, add| matmul((block, dim, hidden_dim), y, dim, hb, w2, add), drop_ffn, position, dim);
    });
}

/// On entry `gradient.dx` is the gradient of the layer's output, on return that of its input x. Destroys the activations.
pub(super) fn backward(
    sizes: &Sizes,
    l: usize,
    (weights, weights_t): (&Layer, &Transposed),
    rope: &Rope,
    x: &[f32],
    activations: &mut Activations,
    gradient: &mut Gradient,
    d_weights: &mut Layer,
    options: &Options,
) {
    let Config { dim, hidden_dim, n_kv_heads, .. } = sizes.config;
    let Sizes { length, padded, block, .. } = *sizes;
    let Activations { qkv, att, lse, x2, h13 } = activations;
    let Gradient { dx, xb, xb_ffn, dy_att, dy_ffn, hb, dqkv, transposed: dy_t, dwo } = gradient;
    let drop_att = Dropout::new(options.dropout, options.seed, Place::AttentionOut, l);
    let drop_ffn = Dropout::new(options.dropout, options.seed, Place::FfnOut, l);

    let rows = dx
        .par_chunks_mut(block * dim)
        .zip(dy_ffn.par_chunks_mut(block * dim))
        .zip(dy_att.par_chunks_mut(block * dim))
        .zip(hb.par_chunks_mut(block * hidden_dim))
        .zip(h13.par_chunks_mut(block * 2 * hidden_dim))
        .zip(xb_ffn.par_chunks_mut(block * dim))
        .zip(x2.par_chunks(block * dim));
    let d_rms_ffn =
        rows.enumerate().map_init(Buffer::default, |d_xb, (i, ((((((dx, dy_ffn), dy_att), hb), h13), xb), x2))| {
            let position = i * block;
            dy_ffn.copy_from_slice(dx);
            drop_rows(drop_ffn, dy_ffn, dim, position);
            let w2 = View::new(&weights.w2, hidden_dim);
            matmul((block, hidden_dim, dim), hb, hidden_dim, View::new(dy_ffn, dim), w2, false);
            swiglu_backward(h13, hb, hidden_dim);
            d_xb.resize(block * dim);
            let dh13 = View::new(h13, 2 * hidden_dim);
            matmul((block, dim, 2 * hidden_dim), d_xb, dim, dh13, View::new(&weights.w13, dim), false);
            rmsnorm(xb, x2, &weights.rms_ffn);
            let mut d_rms_ffn = vec![0.0; dim];
            rmsnorm_backward(dx, &mut d_rms_ffn, d_xb, x2, &weights.rms_ffn);
            dy_att.copy_from_slice(dx);
            drop_rows(drop_att, dy_att, dim, position);
            d_rms_ffn
        });
    add_all(&mut d_weights.rms_ffn, d_rms_ffn.collect());
    transpose_sequences(sizes, dy_t, dy_att);

    let (group, queries, kv_mul) = (sizes.group(), sizes.queries(), sizes.config.kv_mul());
    let heads = dqkv
        .par_chunks_mut(group * padded)
        .zip(qkv.par_chunks(group * padded))
        .zip(att.par_chunks(queries * padded))
        .zip(lse.par_chunks(kv_mul * padded));
    heads.enumerate().for_each_init(Buffer::default, |d_att, (i, (((dqkv, qkv), att), lse))| {
        let (sequence, head) = (i / n_kv_heads, i % n_kv_heads);
        let dy = View::new(&dy_t[sequence * dim * padded..], padded);
        let wo = View::new(&weights_t.wo[head * queries * dim..], dim);
        d_att.resize(queries * padded);
        matmul((queries, length, dim), d_att, padded, wo, dy, false);
        attend_backward(sizes, qkv, att, lse, d_att, dqkv, |j| head_dropout(sizes, l, options, i, j));
        rope.backward(sizes, dqkv);
    });

    let rows = dx.par_chunks_mut(block * dim).zip(xb.par_chunks_mut(block * dim)).zip(x.par_chunks(block * dim));
    let d_rms_att = rows.enumerate().map_init(Buffer::default, |d_xb, (i, ((dx, xb), x))| {
        d_xb.resize(block * dim);
        let dqkv = transposed(sizes, dqkv, sizes.qkv(), i * block);
        matmul((block, dim, sizes.qkv()), d_xb, dim, dqkv, View::new(&weights.wqkv, dim), false);
        rmsnorm(xb, x, &weights.rms_att);
        let mut d_rms_att = vec![0.0; dim];
        rmsnorm_backward(dx, &mut d_rms_att, d_xb, x, &weights.rms_att);
        d_rms_att
    });
    add_all(&mut d_weights.rms_att, d_rms_att.collect());

    let (att, dqkv) = (&*att, &*dqkv);
    dwo.resize(dim * dim);
    let (xb, xb_ffn) = (View::new(xb, dim), View::new(xb_ffn, dim));
    let (dy_ffn, dy_att, hb) = (View::new(dy_ffn, dim), View::new(dy_att, dim), View::new(hb, hidden_dim));
    let (dh13, positions) = (View::new(h13, 2 * hidden_dim), sizes.positions());
    rayon::scope(|s| {
        for_row_blocks(s, &mut d_weights.w13, dim, move |d, first, rows| {
            matmul((rows, dim, positions), d, dim, skip_cols(dh13, first).t(), xb_ffn, false);
        });
        for_row_blocks(s, &mut d_weights.w2, hidden_dim, move |d, first, rows| {
            matmul((rows, hidden_dim, positions), d, hidden_dim, skip_cols(dy_ffn, first).t(), hb, false);
        });
        for_row_blocks(s, dwo, dim, move |d, first, rows| {
            for t in (0..positions).step_by(length) {
                let att = skip_cols(transposed(sizes, att, dim, t), first);
                matmul((rows, dim, length), d, dim, att.t(), skip_rows(dy_att, t), t > 0);
            }
        });
        for_row_blocks(s, &mut d_weights.wqkv, dim, move |d, first, rows| {
            for t in (0..positions).step_by(length) {
                let dqkv = skip_cols(transposed(sizes, dqkv, sizes.qkv(), t), first);
                matmul((rows, dim, length), d, dim, dqkv.t(), skip_rows(xb, t), t > 0);
            }
        });
    });
    transpose(&mut d_weights.wo, dwo, dim);
}

/// Activations (positions, dim) as (sequences, dim, padded).
fn transpose_sequences(sizes: &Sizes, transposed: &mut [f32], x: &[f32]) {
    const COLS: usize = 16;
    let Sizes { length, padded, config: Config { dim, .. }, .. } = *sizes;
    let sequences = transposed.par_chunks_mut(dim * padded).zip(x.par_chunks(length * dim));
    sequences.for_each(|(transposed, x)| {
        for (i, transposed) in transposed.chunks_mut(COLS * padded).enumerate() {
            let shape = (length, transposed.len() / padded);
            math::transpose(transposed, padded, &x[i * COLS..], dim, shape);
        }
    });
}

/// A task for some rows at a time of the gradient of a weight: `task(rows of the gradient, first row, rows)`.
fn for_row_blocks<'a>(
    scope: &rayon::Scope<'a>,
    gradient: &'a mut [f32],
    cols: usize,
    task: impl Fn(&mut [f32], usize, usize) + Send + Copy + 'a,
) {
    // Few, as each packs its activations again, but enough to keep all threads busy.
    let rows = (gradient.len() / cols / 8).clamp(96, 192);
    for (i, block) in gradient.chunks_mut(rows * cols).enumerate() {
        scope.spawn(move |_| {
            let first = i * rows;
            task(block, first, block.len() / cols);
        });
    }
}

fn skip_rows(view: View, rows: usize) -> View {
    View { data: &view.data[rows * view.row..], ..view }
}

fn skip_cols(view: View, cols: usize) -> View {
    View { data: &view.data[cols * view.col..], ..view }
}

/// Transposed activations `(sequences, cols, padded)` from this position on as rows of positions, to the end of its
/// sequence.
fn transposed<'a>(sizes: &Sizes, x: &'a [f32], cols: usize, position: usize) -> View<'a> {
    let (sequence, t) = (position / sizes.length, position % sizes.length);
    View { data: &x[sequence * cols * sizes.padded + t..], row: 1, col: sizes.padded }
}

/// y = x + dropout(product), where `product(y, add)` writes or adds to y.
fn residual(
    y: &mut [f32],
    x: &[f32],
    product: impl FnOnce(&mut [f32], bool),
    dropout: Option<Dropout>,
    position: usize,
    dim: usize,
) {
    if dropout.is_none() {
        y.copy_from_slice(x);
        return product(y, true);
    }
    product(y, false);
    drop_rows(dropout, y, dim, position);
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// Sums the parts of a norm weight's gradient in order.
pub(super) fn add_all(sum: &mut [f32], parts: Vec<Vec<f32>>) {
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
}

/// Dropout of query head `j` of the `i`-th task over sequences and key/value heads.
fn head_dropout(sizes: &Sizes, l: usize, options: &Options, i: usize, j: usize) -> Option<HeadDropout> {
    let dropout = Dropout::new(options.dropout, options.seed, Place::Attention, l)?;
    Some(HeadDropout { dropout, row: (i * sizes.config.kv_mul() + j) * sizes.length })
}

/// Attention of the query heads that share a key/value head.
fn attend(
    sizes: &Sizes,
    qkv: &[f32],
    att: &mut [f32],
    lse: &mut [f32],
    dropout: impl Fn(usize) -> Option<HeadDropout>,
) {
    let padded = sizes.padded;
    let head = sizes.config.head_size() * padded;
    let (q, kv) = qkv.split_at(sizes.queries() * padded);
    let (k, v) = kv.split_at(head);
    let heads = q.chunks_exact(head).zip(att.chunks_exact_mut(head)).zip(lse.chunks_exact_mut(padded));
    for (j, ((q, o), lse)) in heads.enumerate() {
        pulp::Arch::new().dispatch(attention::Forward { q, k, v, o, lse, padded, dropout: dropout(j) });
    }
}

/// Writes the gradients of qkv, given that of att.
fn attend_backward(
    sizes: &Sizes,
    qkv: &[f32],
    att: &[f32],
    lse: &[f32],
    d_att: &[f32],
    dqkv: &mut [f32],
    dropout: impl Fn(usize) -> Option<HeadDropout>,
) {
    let padded = sizes.padded;
    let head = sizes.config.head_size() * padded;
    let (q, kv) = qkv.split_at(sizes.queries() * padded);
    let (k, v) = kv.split_at(head);
    let (dq, dkv) = dqkv.split_at_mut(sizes.queries() * padded);
    dkv.fill(0.0);
    let (dk, dv) = dkv.split_at_mut(head);
    let inputs = q.chunks_exact(head).zip(att.chunks_exact(head)).zip(d_att.chunks_exact(head));
    let heads = inputs.zip(lse.chunks_exact(padded)).zip(dq.chunks_exact_mut(head));
    for (j, ((((q, o), d_o), lse), dq)) in heads.enumerate() {
        let dropout = dropout(j);
        pulp::Arch::new().dispatch(attention::Backward { q, k, v, o, d_o, lse, dq, dk, dv, padded, dropout });
    }
}
