//! The forward pass: embed, then one [`step`] per layer, then [`classify`].
//!
//! There is one pass for every weight type, batch size, instruction set and number of threads.
//! Tokens are rows of a batch: one when generating, several when reading a prompt, so that the
//! weights are read once for all of them.

#[cfg(feature = "std")]
use crate::batch;
use crate::cache::Head;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Error;
use crate::kernels::{Heads, HeadsQ8};
use crate::math::{check_finite, native, rope, sin_cos};
use crate::matrix::{Matrix, Product, Q8Matrix, prefix, rows_of, rows_of_mut};
use crate::model::{Layer, Model};
#[cfg(feature = "std")]
use crate::panel::run_guided;
use crate::panel::{Columns, Panel, Turns, run_disjoint};
use crate::plan::{KvType, XQ_BYTES, block_len, scratch_len};
use crate::quant::quantize_by;
use crate::state::{Int8Scratch, Progress, State};

/// Feeds `tokens` through all layers, at the positions behind those that the state has read:
/// [`State::filled`] and on. Then [`classify`] gives logits.
///
/// [`State::rewind`] goes back to an earlier position or to a new sequence. A sequence belongs to
/// one model, at one place in memory.
///
/// # Errors
/// As [`begin`] and [`step`].
pub fn forward(model: &Model<'_>, state: &mut State<'_>, engine: &Engine<'_>, tokens: &[u32]) -> Result<(), Error> {
    begin(model, state, tokens)?;
    while step(model, state, engine)? {}
    Ok(())
}

/// Starts a pass over `tokens`: looks up their embeddings. [`step`] does the rest, layer by layer,
/// with time for a watchdog or other tasks in between. A pass that has not ended is given up.
///
/// # Errors
/// [`Error::ModelMismatch`], [`Error::OtherModel`] when another model began the sequence,
/// [`Error::Batch`], [`Error::Position`] or [`Error::Token`]; the state is then as before.
pub fn begin(model: &Model<'_>, state: &mut State<'_>, tokens: &[u32]) -> Result<(), Error> {
    begin_at(model, state, tokens, state.filled)
}

/// [`State::rewind`] to `pos` and [`begin`] in one, which an error leaves undone.
pub(crate) fn begin_at(model: &Model<'_>, state: &mut State<'_>, tokens: &[u32], pos: usize) -> Result<(), Error> {
    check_config(model, state)?;
    let Config { dim, vocab_size, .. } = *model.config();
    let limits = state.plan.limits;
    let n_tokens = tokens.len();
    if n_tokens == 0 || n_tokens > limits.batch {
        return Err(Error::Batch { n_tokens, batch: limits.batch });
    }
    let room = limits.max_seq.checked_sub(pos);
    if pos > state.filled || room.is_none_or(|room| n_tokens > room) {
        return Err(Error::Position { pos, n_tokens, filled: state.filled, max_seq: limits.max_seq });
    }
    if pos > 0 {
        check_model(model, state)?;
    }
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(Error::Token { token, vocab_size });
    }

    for (x, &token) in rows_of_mut(state.x, dim).zip(tokens) {
        let error = Error::Token { token, vocab_size };
        model.tok_emb().copy_row(token as usize, x).ok_or(error)?;
    }
    for (i, cos_sin) in state.rope.chunks_exact_mut(model.config().head_size().max(1)).take(n_tokens).enumerate() {
        for ([cos, sin], freq) in cos_sin.as_chunks_mut::<2>().0.iter_mut().zip(state.freq.iter()) {
            let angle = (pos + i) as f32 * freq;
            (*sin, *cos) = sin_cos(angle);
        }
    }
    state.filled = pos;
    state.progress = Progress { pos, rows: n_tokens, layer: 0, model: model.address() };
    Ok(())
}

/// Computes one layer. Returns whether a layer is left.
///
/// # Errors
/// [`Error::NotReady`] without [`begin`] or after the last layer, [`Error::ModelMismatch`],
/// [`Error::OtherModel`].
pub fn step(model: &Model<'_>, state: &mut State<'_>, engine: &Engine<'_>) -> Result<bool, Error> {
    check_config(model, state)?;
    let config = model.config();
    let Progress { pos, rows, layer, .. } = state.progress;
    if rows == 0 {
        return Err(Error::NotReady);
    }
    check_model(model, state)?;
    let weights = model.layer(layer).ok_or(Error::NotReady)?;
    attention(config, &weights, state, engine);
    feed_forward(config, &weights, state, engine);
    state.progress.layer = layer + 1;
    let more = layer + 1 < config.n_layers;
    if !more {
        state.filled = pos + rows;
    }
    Ok(more)
}

/// Logits (vocab_size) of token `row` of the last pass. May be called for any of its rows, in any
/// order.
///
/// # Errors
/// [`Error::NotReady`] before the last [`step`] or when the pass had no such row,
/// [`Error::ModelMismatch`], [`Error::OtherModel`], and [`Error::NotFinite`] when damaged weights
/// gave a NaN or an infinity.
pub fn classify<'a>(
    model: &Model<'_>,
    state: &'a mut State<'_>,
    engine: &Engine<'_>,
    row: usize,
) -> Result<&'a mut [f32], Error> {
    check_config(model, state)?;
    let Progress { rows, layer, .. } = state.progress;
    let dim = model.config().dim;
    if row >= rows || layer != model.config().n_layers {
        return Err(Error::NotReady);
    }
    check_model(model, state)?;
    let x = state.x.chunks_exact(dim.max(1)).nth(row).ok_or(Error::NotReady)?;
    let xb = state.xb.get_mut(..dim).ok_or(Error::NotReady)?; // x stays as it is for the other rows
    (engine.kernels.rmsnorm)(xb, x, model.rms_final(), model.config().norm_eps);
    matmul(engine, xb, &mut state.int8, state.scratch, [Product { w: model.wcls(), out: state.logits }]);
    check_finite(state.logits)?;
    Ok(state.logits)
}

fn check_config(model: &Model<'_>, state: &State<'_>) -> Result<(), Error> {
    if *model.config() == state.plan.config { Ok(()) } else { Err(Error::ModelMismatch) }
}

/// Keys and values of one model mean nothing to another, even of the same shape.
fn check_model(model: &Model<'_>, state: &State<'_>) -> Result<(), Error> {
    if model.address() == state.progress.model { Ok(()) } else { Err(Error::OtherModel) }
}

/// x += wo · attention(rmsnorm(x))
fn attention(config: &Config, layer: &Layer<'_>, state: &mut State<'_>, engine: &Engine<'_>) {
    let (dim, kv_dim, head_size) = (config.dim, config.kv_dim(), config.head_size());
    let Progress { pos, rows, layer: l, .. } = state.progress;
    let x = prefix(state.x, rows, dim);
    let xb = prefix(state.xb, rows, dim);
    let q = prefix(state.q, rows, dim);
    let k = prefix(state.hb, rows, kv_dim);
    let v = prefix(state.hb2, rows, kv_dim);

    rmsnorm_rows(engine, xb, x, layer.rms_att, config.norm_eps);
    let products = [
        Product { w: layer.wq, out: &mut *q },
        Product { w: layer.wk, out: &mut *k },
        Product { w: layer.wv, out: &mut *v },
    ];
    matmul(engine, xb, &mut state.int8, state.scratch, products);
    rope_rows(engine, q, dim, state.rope, head_size);
    rope_rows(engine, k, kv_dim, state.rope, head_size);
    state.cache.store(l, k, v, pos);
    attend_heads(config, state, engine);

    let x = prefix(state.x, rows, dim);
    let xb = prefix(state.xb, rows, dim);
    let q = prefix(state.q, rows, dim);
    matmul(engine, xb, &mut state.int8, state.scratch, [Product { w: layer.wo, out: &mut *q }]);
    add(engine, x, q);
}

/// Attention of all heads and rows, from `q` to `xb`. One piece of work is a row of the batch with
/// the query heads that share a key/value head; pieces lie one after the other in both, (rows,
/// n_kv_heads, kv_mul · head_size).
fn attend_heads(config: &Config, state: &mut State<'_>, engine: &Engine<'_>) {
    let Progress { pos, rows, layer, .. } = state.progress;
    let limits = state.plan.limits;
    let head_size = config.head_size();
    let piece = config.kv_mul() * head_size;
    let q = &*prefix(state.q, rows, config.dim);
    let out = prefix(state.xb, rows, config.dim);
    let (xq, xs) = (prefix(state.int8.q, XQ_BYTES, q.len()), prefix(state.int8.s, rows, config.n_heads));
    if let KvType::Q8 = limits.kv {
        // One byte per value: the layout that all attention kernels read.
        quantize_by(native::largest_magnitude, q, head_size, xq, xs);
    }
    let (xq, xs, cache) = (&*xq, &*xs, &state.cache);

    #[cfg(feature = "std")]
    if let Some(kernel) = batch::attention_kernel(config, engine, rows, limits.kv) {
        let place = batch::Place { layer, pos, rows };
        return batch::attend(engine, kernel, config, place, cache, q, state.scratch, out);
    }
    let scratch = scratch_len(config, &limits);
    // Each task has a part of the scratch of its own, so there are at most as many tasks as parts.
    let parts = state.scratch.len().checked_div(scratch).unwrap_or(0);
    let tasks = engine.tasks(q.len().saturating_mul(pos + rows)).min(parts).max(1);
    let scale = core::f32::consts::LOG2_E / native::sqrt(head_size as f32);
    let outs = [Turns::new(state.scratch, scratch), Turns::new(out, piece)];
    run_disjoint(engine.runner, tasks, outs, |task, [mut att, mut out]| {
        let n_kv_heads = config.n_kv_heads.max(1); // here, where the compiler sees that it is not 0
        // In turns, since later rows have more positions.
        let pieces = q.chunks_exact(piece.max(1)).enumerate().skip(task).step_by(tasks.max(1));
        for (turn, (i, q)) in pieces.enumerate() {
            let (row, kv_head) = (i / n_kv_heads, i % n_kv_heads);
            let positions = pos + row + 1;
            let att = att.row(0).get_mut(..config.kv_mul() * block_len(positions));
            let (Some(head), Some(att)) = (cache.head(layer, kv_head), att) else { return };
            match head {
                Head::F32 { keys, values } => {
                    let heads = Heads { q, keys, values, positions, head_size, scale };
                    (engine.kernels.attend)(&heads, att, out.row(turn));
                }
                Head::Q8 { keys, values, key_scales, value_scales } => {
                    let (Some(q), Some(q_scales)) = (xq.get(i * piece..), xs.get(i * config.kv_mul()..)) else {
                        return;
                    };
                    let heads =
                        HeadsQ8 { q, q_scales, keys, values, key_scales, value_scales, positions, head_size, scale };
                    (engine.kernels.attend_q8)(&heads, att, out.row(turn));
                }
            }
        }
    });
}

/// x += w2 · (silu(w1 · y) · (w3 · y)) with y = rmsnorm(x)
fn feed_forward(config: &Config, layer: &Layer<'_>, state: &mut State<'_>, engine: &Engine<'_>) {
    let (dim, hidden_dim) = (config.dim, config.hidden_dim);
    let rows = state.progress.rows;
    let x = prefix(state.x, rows, dim);
    let xb = prefix(state.xb, rows, dim);
    let hb = prefix(state.hb, rows, hidden_dim);
    let hb2 = prefix(state.hb2, rows, hidden_dim);

    rmsnorm_rows(engine, xb, x, layer.rms_ffn, config.norm_eps);
    let products = [Product { w: layer.w1, out: &mut *hb }, Product { w: layer.w3, out: &mut *hb2 }];
    matmul(engine, xb, &mut state.int8, state.scratch, products);
    by_rows(engine, 8, hb, hidden_dim, |first, hb| (engine.kernels.swiglu)(hb, rest(hb2, first, hidden_dim)));
    matmul(engine, hb, &mut state.int8, state.scratch, [Product { w: layer.w2, out: &mut *xb }]);
    add(engine, x, xb);
}

/// `out[b] = w · x[b]` for matrices that share their input, as one round of tasks over all their
/// rows. `int8` receives the quantised input of int8 matrices.
fn matmul<const N: usize>(
    engine: &Engine<'_>,
    x: &[f32],
    int8: &mut Int8Scratch<'_>,
    scratch: &mut [f32],
    products: [Product<'_>; N],
) {
    #[cfg(feature = "std")]
    if let Some(kernels) = batch::kernels(engine, x, &products) {
        return batch::matmul(engine, kernels, x, int8, scratch, products);
    }
    #[cfg(not(feature = "std"))]
    let _ = scratch;
    // A multiple of every kernel's row block: cuts within a matrix leave whole blocks.
    const ROW_BLOCK: usize = 8;
    let (xq, xs) = match products.first() {
        Some(Product { w: Matrix::Q8(Q8Matrix { group_size, .. }), .. }) => {
            let xq = prefix(int8.q, XQ_BYTES, x.len());
            let xs = prefix(int8.s, 1, x.len().checked_div(*group_size).unwrap_or(0));
            (engine.kernels.quantize)(x, *group_size, xq, xs);
            (&*xq, &*xs)
        }
        _ => (&[][..], &[][..]),
    };
    let matrices = products.each_ref().map(|product| product.w);
    let total: usize = matrices.iter().map(Matrix::rows).sum();
    let tasks = engine.tasks(total.saturating_mul(x.len()));
    let rows_per_task = total.div_ceil(tasks).next_multiple_of(ROW_BLOCK);
    let mut start = 0;
    let outs = products.map(|Product { w, out }| {
        let out = Columns::new(out, w.rows(), start, rows_per_task);
        start += w.rows();
        out
    });
    let multiply = |_: usize, panels: [Panel<'_>; N]| {
        for (w, mut out) in matrices.iter().zip(panels) {
            let rows = out.columns();
            if rows.is_empty() {
                continue;
            }
            match w.row_range(rows) {
                Some(Matrix::F32 { w, cols, .. }) => (engine.kernels.matmul_f32)(w, cols, x, &mut out),
                Some(Matrix::Q8(w)) => (engine.kernels.matmul_q8)(&w, xq, xs, &mut out),
                None => return,
            }
        }
    };
    #[cfg(feature = "std")]
    if tasks > 1 && total.saturating_mul(x.len()) / tasks >= LARGE_SHARE {
        // Twice what is worth a task of its own, so that taking the next rows costs little.
        let rows = engine.runner.min_work().saturating_mul(2).checked_div(x.len()).unwrap_or(0);
        let least = rows.clamp(1, total).next_multiple_of(ROW_BLOCK);
        return run_guided(engine.runner, tasks, least, outs, multiply);
    }
    run_disjoint(engine.runner, tasks, outs, multiply);
}

/// Multiplications of a thread from which on it takes its rows in pieces, so that a late thread
/// costs little. Smaller shares stay the same for each token, in the cache of their thread's core:
/// taking them in pieces was 10% slower.
#[cfg(feature = "std")]
const LARGE_SHARE: usize = 1 << 21;

fn rmsnorm_rows(engine: &Engine<'_>, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let dim = weight.len().max(1);
    by_rows(engine, 2, out, dim, |first, out| {
        for (out, x) in rows_of_mut(out, dim).zip(rows_of(rest(x, first, dim), dim)) {
            (engine.kernels.rmsnorm)(out, x, weight, eps);
        }
    });
}

/// Turns the heads of each row by the angles of its position.
#[inline(never)] // inlined twice it takes 500 bytes of a chip more
fn rope_rows(engine: &Engine<'_>, heads: &mut [f32], width: usize, angles: &[f32], head_size: usize) {
    by_rows(engine, 2, heads, width, |first, heads| {
        for (heads, angles) in rows_of_mut(heads, width).zip(rows_of(rest(angles, first, head_size), head_size)) {
            rope(heads, angles);
        }
    });
}

fn add(engine: &Engine<'_>, x: &mut [f32], y: &[f32]) {
    by_rows(engine, 1, x, 1, |first, x| x.iter_mut().zip(rest(y, first, 1)).for_each(|(x, y)| *x += y));
}

/// Cuts the rows of `out` into parts for tasks, and calls `part` with the index of each part's
/// first row. `work` is what an element costs, in multiplications.
#[inline(always)] // nothing is left of it on a chip
fn by_rows(engine: &Engine<'_>, work: usize, out: &mut [f32], width: usize, part: impl Fn(usize, &mut [f32]) + Sync) {
    #[cfg(feature = "std")]
    {
        let tasks = engine.tasks(out.len().saturating_mul(work));
        if tasks > 1 {
            let rows = out.len().div_ceil(width.max(1)).div_ceil(tasks);
            let len = out.len();
            let out = Columns::new(out, len, 0, rows * width);
            return run_disjoint(engine.runner, tasks, [out], |task, [mut out]| part(task * rows, out.row(0)));
        }
    }
    #[cfg(not(feature = "std"))]
    let _ = (engine, work, width);
    part(0, out);
}

/// The rows of a matrix from row `first` on.
#[inline(always)]
fn rest(matrix: &[f32], first: usize, width: usize) -> &[f32] {
    matrix.get(first.saturating_mul(width)..).unwrap_or_default()
}
