//! One transformer layer, forward and backward.

use infer_core::Config;
use infer_core::format::TensorName;
use rayon::prelude::*;

use super::amx::Panels;
use super::attention::{self, HeadDropout};
use super::buffer::Buffer;
use super::math::{rmsnorm, rmsnorm_backward, swiglu, swiglu_backward};
use super::products::{Transposed, View, transpose};
use super::step::{Rope, Sizes, drop_rows, sum_parts};
use crate::model::batch::Options;
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

/// The weights as right-hand sides of products: transposed in forward, as they are in backward.
#[derive(Default)]
pub(super) struct Operands {
    wo_t: Transposed,
    w13_t: Transposed,
    w2_t: Transposed,
    wqkv: Panels, // for AMX, as the next two
    w13: Panels,
    w2: Panels,
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
    pub dy_att: Buffer, // (positions, dim): gradient of wo's output
    dqkv: Buffer,       // (sequences, qkv, padded)
    /// For each sequence (dim, length): xb in forward, dy_att in backward
    transposed: Vec<Transposed>,
    parts: Vec<Layer>, // the weights' gradients of some positions each; that of wo is transposed
    dwo: Buffer,       // (dim in, dim out): gradient of wo, transposed
}

/// Scratch memory of a task on rows in [`backward`]'s feed-forward half.
#[derive(Default)]
struct Rows {
    xb: Buffer,   // (block, dim)
    d_xb: Buffer, // (block, dim)
    dy: Buffer,   // (block, dim)
    hb: Buffer,   // (block, hidden_dim)
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

    /// See [`super::step::Weights::for_each_row`].
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

impl Operands {
    pub fn load(&mut self, weights: &Layer, sizes: &Sizes, backward: bool) {
        let Config { dim, hidden_dim, .. } = sizes.config;
        let (wo, w2) = (View::new(&weights.wo, dim), View::new(&weights.w2, hidden_dim));
        let (w13, wqkv) = (View::new(&weights.w13, dim), View::new(&weights.wqkv, dim));
        self.wo_t.load(sizes, wo, (dim, dim));
        self.w13_t.load(sizes, w13, (dim, 2 * hidden_dim));
        self.w2_t.load(sizes, w2, (hidden_dim, dim));
        if sizes.amx && backward {
            self.wqkv.load(wqkv, (sizes.qkv(), dim));
            self.w13.load(w13, (2 * hidden_dim, dim));
            self.w2.load(w2, (dim, hidden_dim));
        }
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
        for x in [&mut self.dx, &mut self.xb, &mut self.dy_att] {
            x.resize(n);
        }
        self.dqkv.resize(sizes.sequences * sizes.qkv() * sizes.padded);
        self.transposed.resize_with(sizes.sequences, Transposed::default);
    }
}

impl Rows {
    fn resize(&mut self, sizes: &Sizes) {
        for x in [&mut self.xb, &mut self.d_xb, &mut self.dy] {
            x.resize(sizes.block * sizes.config.dim);
        }
        self.hb.resize(sizes.block * sizes.config.hidden_dim);
    }
}

/// x_next = layer(x). `gradient` is scratch.
pub(super) fn forward(
    sizes: &Sizes,
    l: usize,
    (weights, operands): (&Layer, &Operands),
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
    let sequences = xb_t.par_iter_mut().zip(xb.par_chunks_mut(length * dim)).zip(x.par_chunks(length * dim));
    sequences.for_each(|((xb_t, xb), x)| {
        let rows = xb.par_chunks_mut(block * dim).zip(x.par_chunks(block * dim));
        rows.for_each(|(xb, x)| rmsnorm(xb, x, &weights.rms_att));
        xb_t.load(sizes, View::new(xb, dim), (dim, length));
    });

    let (group, queries) = (sizes.group(), sizes.queries());
    let heads = qkv
        .par_chunks_mut(group * padded)
        .zip(att.par_chunks_mut(queries * padded))
        .zip(lse.par_chunks_mut(sizes.config.kv_mul() * padded));
    heads.enumerate().for_each(|(i, ((qkv, att), lse))| {
        let (sequence, head) = (i / n_kv_heads, i % n_kv_heads);
        let w = View::new(&weights.wqkv[head * group * dim..], dim);
        sizes.matmul((group, length, dim), qkv, padded, w, &xb_t[sequence], false);
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
        residual(
            x2,
            x,
            |y, add| sizes.matmul((block, dim, dim), y, dim, att, &operands.wo_t, add),
            drop_att,
            position,
            dim,
        );
        rmsnorm(x_next, x2, &weights.rms_ffn);
        let xb = View::new(x_next, dim);
        sizes.matmul((block, 2 * hidden_dim, dim), h13, 2 * hidden_dim, xb, &operands.w13_t, false);
        swiglu(hb, h13, hidden_dim);
        let (hb, w2) = (View::new(hb, hidden_dim), &operands.w2_t);
        residual(
            x_next,
            x2,
            |y, add| sizes.matmul((block, dim, hidden_dim), y, dim, hb, w2, add),
            drop_ffn,
            position,
            dim,
        );
    });
}

/// On entry `gradient.dx` is the gradient of the layer's output, on return that of its input x.
/// Destroys the activations.
pub(super) fn backward(
    sizes: &Sizes,
    l: usize,
    (weights, operands): (&Layer, &Operands),
    rope: &Rope,
    x: &[f32],
    activations: &mut Activations,
    gradient: &mut Gradient,
    d_weights: &mut Layer,
    options: &Options,
) {
    let Config { dim, hidden_dim, n_kv_heads, .. } = sizes.config;
    let Sizes { length, padded, block, part, .. } = *sizes;
    let Activations { qkv, att, lse, x2, h13 } = activations;
    let Gradient { dx, dy_att, dqkv, transposed: dy_t, parts, dwo, .. } = gradient;
    let drop_att = Dropout::new(options.dropout, options.seed, Place::AttentionOut, l);
    let drop_ffn = Dropout::new(options.dropout, options.seed, Place::FfnOut, l);
    if parts.is_empty() {
        parts.resize_with(sizes.positions().div_ceil(part), || Layer::zeros(&sizes.config));
    }

    let w2 = (View::new(&weights.w2, hidden_dim), &operands.w2);
    let w13 = (View::new(&weights.w13, dim), &operands.w13);
    let wqkv = (View::new(&weights.wqkv, dim), &operands.wqkv);

    // Products of a block's activations are taken while those are in the cache.
    let tasks = parts
        .par_iter_mut()
        .zip(dx.par_chunks_mut(part * dim))
        .zip(dy_att.par_chunks_mut(part * dim))
        .zip(h13.par_chunks_mut(part * 2 * hidden_dim))
        .zip(x2.par_chunks(part * dim));
    tasks.enumerate().for_each_init(Rows::default, |rows, (i, ((((d, dx), dy_att), h13), x2))| {
        rows.resize(sizes);
        let Rows { xb, d_xb, dy, hb } = rows;
        d.rms_ffn.fill(0.0);
        let blocks = dx
            .chunks_exact_mut(block * dim)
            .zip(dy_att.chunks_exact_mut(block * dim))
            .zip(h13.chunks_exact_mut(block * 2 * hidden_dim))
            .zip(x2.chunks_exact(block * dim));
        for (j, (((dx, dy_att), h13), x2)) in blocks.enumerate() {
            let (position, add) = (i * part + j * block, j > 0);
            dy.copy_from_slice(dx);
            drop_rows(drop_ffn, dy, dim, position);
            let dy = View::new(dy, dim);
            sizes.matmul((block, hidden_dim, dim), hb, hidden_dim, dy, w2, false);
            swiglu_backward(h13, hb, hidden_dim);
            let dh13 = View::new(h13, 2 * hidden_dim);
            sizes.matmul((dim, hidden_dim, block), &mut d.w2, hidden_dim, dy.t(), View::new(hb, hidden_dim), add);
            sizes.matmul((block, dim, 2 * hidden_dim), d_xb, dim, dh13, w13, false);
            rmsnorm(xb, x2, &weights.rms_ffn);
            sizes.matmul((2 * hidden_dim, dim, block), &mut d.w13, dim, dh13.t(), View::new(xb, dim), add);
            rmsnorm_backward(dx, &mut d.rms_ffn, d_xb, x2, &weights.rms_ffn);
            dy_att.copy_from_slice(dx);
            drop_rows(drop_att, dy_att, dim, position);
        }
    });
    let sequences = dy_t.par_iter_mut().zip(dy_att.par_chunks(length * dim));
    sequences.for_each(|(dy_t, dy)| dy_t.load(sizes, View::new(dy, dim), (dim, length)));

    let (group, queries, kv_mul) = (sizes.group(), sizes.queries(), sizes.config.kv_mul());
    let heads = dqkv
        .par_chunks_mut(group * padded)
        .zip(qkv.par_chunks(group * padded))
        .zip(att.par_chunks(queries * padded))
        .zip(lse.par_chunks(kv_mul * padded));
    heads.enumerate().for_each_init(Buffer::default, |d_att, (i, (((dqkv, qkv), att), lse))| {
        let (sequence, head) = (i / n_kv_heads, i % n_kv_heads);
        let wo_t = View::new(&weights.wo, dim).t().skip_rows(head * queries);
        d_att.resize(queries * padded);
        sizes.matmul((queries, length, dim), d_att, padded, wo_t, &dy_t[sequence], false);
        attend_backward(sizes, qkv, att, lse, d_att, dqkv, |j| head_dropout(sizes, l, options, i, j));
        rope.backward(sizes, dqkv);
    });

    let tasks = parts
        .par_iter_mut()
        .zip(dx.par_chunks_mut(part * dim))
        .zip(dy_att.par_chunks(part * dim))
        .zip(x.par_chunks(part * dim));
    tasks.enumerate().for_each_init(Default::default, |[xb, d_xb]: &mut [Buffer; 2], (i, (((d, dx), dy_att), x))| {
        xb.resize(block * dim);
        d_xb.resize(block * dim);
        d.rms_att.fill(0.0);
        let blocks =
            dx.chunks_exact_mut(block * dim).zip(dy_att.chunks_exact(block * dim)).zip(x.chunks_exact(block * dim));
        for (j, ((dx, dy_att), x)) in blocks.enumerate() {
            let (position, add) = (i * part + j * block, j > 0);
            let att = transposed(sizes, att, dim, position);
            let dqkv = transposed(sizes, dqkv, sizes.qkv(), position);
            sizes.matmul((dim, dim, block), &mut d.wo, dim, att.t(), View::new(dy_att, dim), add);
            sizes.matmul((block, dim, sizes.qkv()), d_xb, dim, dqkv, wqkv, false);
            rmsnorm(xb, x, &weights.rms_att);
            sizes.matmul((sizes.qkv(), dim, block), &mut d.wqkv, dim, dqkv.t(), View::new(xb, dim), add);
            rmsnorm_backward(dx, &mut d.rms_att, d_xb, x, &weights.rms_att);
        }
    });

    let Layer { rms_att, wqkv, wo, rms_ffn, w13, w2 } = d_weights;
    dwo.resize(dim * dim);
    sum_parts(rms_att, parts, |part| &part.rms_att);
    sum_parts(wqkv, parts, |part| &part.wqkv);
    sum_parts(dwo, parts, |part| &part.wo);
    sum_parts(rms_ffn, parts, |part| &part.rms_ffn);
    sum_parts(w13, parts, |part| &part.w13);
    sum_parts(w2, parts, |part| &part.w2);
    transpose(wo, dim, dwo, dim);
}

/// Transposed activations `(sequences, cols, padded)` from this position on as rows of positions,
/// to the end of its sequence.
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
