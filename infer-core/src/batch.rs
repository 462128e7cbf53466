//! Products and attention of many tokens at once, by [`Batch`] kernels.

use crate::cache::{Cache, Head};
use crate::config::Config;
use crate::engine::Engine;
use crate::kernels::{AttendBatch, Batch, Queries};
use crate::math::{LANES, native};
use crate::matrix::{Matrix, Product, Q8Matrix, prefix};
use crate::panel::{Columns, Grid, Tiles, Turns, run_blocks, run_disjoint};
use crate::plan::{KvType, XQ_BYTES};
use crate::scratch::{att_len, packed_len};
use crate::state::Int8Scratch;

/// The kernels for products of x with these matrices, if there are some.
pub(crate) fn kernels<'e>(engine: &'e Engine<'_>, x: &[f32], products: &[Product<'_>]) -> Option<&'e Batch> {
    let kernels = engine.kernels.batch.as_ref()?;
    let w = &products.first()?.w;
    let fits = match w {
        Matrix::F32 { .. } => true,
        Matrix::Q8(w) => w.group_size.is_multiple_of(4) && w.cols >= 16,
    };
    (fits && x.len() >= kernels.tokens * w.cols()).then_some(kernels)
}

/// As `matmul` of forward.rs. Tasks take blocks of rows as they come to them.
pub(crate) fn matmul<const N: usize>(
    engine: &Engine<'_>,
    kernels: &Batch,
    x: &[f32],
    int8: &mut Int8Scratch<'_>,
    scratch: &mut [f32],
    products: [Product<'_>; N],
) {
    let Some(&Product { w, .. }) = products.first() else { return };
    let (xq, xs) = match &w {
        Matrix::F32 { .. } => (&[][..], &[][..]),
        Matrix::Q8(w) => quantize(engine, kernels, x, w, int8),
    };
    let matrices = products.each_ref().map(|product| product.w);
    let mut blocks = 0;
    let outs = products.map(|Product { w, out }| {
        let out = Columns::new(out, w.rows(), blocks * kernels.rows, kernels.rows);
        blocks += w.rows().div_ceil(kernels.rows);
        out
    });
    let part = packed_len(w.cols(), w.weights());
    let parts = scratch.len().checked_div(part).unwrap_or(0);
    let tasks = engine.tasks(x.len().saturating_mul(blocks * kernels.rows)).min(parts);
    run_blocks(engine.runner, tasks, blocks, Turns::new(scratch, part), outs, |_, packed, panels| {
        for (w, mut out) in matrices.iter().zip(panels) {
            let rows = out.columns();
            if rows.is_empty() {
                continue;
            }
            match w.row_range(rows) {
                Some(Matrix::F32 { w, cols, .. }) => (kernels.matmul_f32)(w, cols, x, packed, &mut out),
                Some(Matrix::Q8(w)) => (kernels.matmul_q8)(&w, xq, xs, packed, &mut out),
                None => return,
            }
        }
    });
}

/// Quantises x as the kernels take it.
fn quantize<'s>(
    engine: &Engine<'_>,
    kernels: &Batch,
    x: &[f32],
    w: &Q8Matrix<'_>,
    int8: &'s mut Int8Scratch<'_>,
) -> (&'s [i8], &'s [f32]) {
    let (cols, groups) = (w.cols.max(1), w.cols.checked_div(w.group_size).unwrap_or(0));
    let xq = prefix(int8.q, XQ_BYTES, x.len());
    let xs = prefix(int8.s, x.len() / cols, groups);
    let tasks = engine.tasks(x.len().saturating_mul(4));
    let outs = (Turns::new(xq, XQ_BYTES * cols), Turns::new(xs, groups));
    run_disjoint(engine.runner, tasks, outs, |task, (mut xq, mut xs)| {
        for (turn, x) in x.chunks_exact(cols).skip(task).step_by(tasks).enumerate() {
            (kernels.quantize)(x, w.group_size, xq.row(turn), xs.row(turn));
        }
    });
    (xq, xs)
}

/// Where the tokens of a pass are.
pub(crate) struct Place {
    pub layer: usize,
    /// Position of the first token.
    pub pos: usize,
    /// Number of tokens.
    pub rows: usize,
}

/// The kernel for attention of so many tokens, if there is one.
pub(crate) fn attention_kernel(config: &Config, engine: &Engine<'_>, rows: usize, kv: KvType) -> Option<AttendBatch> {
    let kernels = engine.kernels.batch.as_ref()?;
    // Heads of 8 would leave half of a register empty, which takes longer than one token at a time.
    let fits = config.head_size().is_multiple_of(LANES) && config.head_size() > LANES;
    kernels.attend.filter(|_| kv == KvType::F32 && fits && rows >= kernels.tokens)
}

/// Attention of all heads of several tokens, from `q` to `out`, (rows, dim) each. Tasks take a
/// key/value head with some of the rows as they come to them.
#[allow(clippy::too_many_arguments)] // the parts of a `State`, of which some are borrowed already
pub(crate) fn attend(
    engine: &Engine<'_>,
    kernel: AttendBatch,
    config: &Config,
    place: Place,
    cache: &Cache<'_>,
    q: &[f32],
    scratch: &mut [f32],
    out: &mut [f32],
) {
    /// The most rows of a piece of work.
    const ROWS: usize = 24;
    let Place { layer, pos, rows } = place;
    let (dim, head_size, kv_mul) = (config.dim, config.head_size(), config.kv_mul());
    let scale = core::f32::consts::LOG2_E / native::sqrt(head_size as f32);
    let grid = Grid { rows, width: dim, down: rows.div_ceil(ROWS), columns: kv_mul * head_size };
    let part = att_len(pos + rows);
    let parts = scratch.len().checked_div(part).unwrap_or(0);
    let tasks = engine.tasks(q.len().saturating_mul(pos + rows)).min(parts);
    let Some(outs) = Tiles::new(out, grid) else { return };
    let blocks = grid.down * grid.across();
    run_blocks(engine.runner, tasks, blocks, Turns::new(scratch, part), outs, |block, att, mut out| {
        let (rows, columns) = grid.part(block);
        let head = cache.head(layer, block % grid.across().max(1));
        let q = q.get(rows.start * dim + columns.start..);
        let (Some(Head::F32 { keys, values }), Some(q)) = (head, q) else { return };
        let (positions, rows) = (pos + rows.start + 1, rows.len());
        let queries = Queries { q, stride: dim, rows, kv_mul, keys, values, positions, head_size, scale };
        kernel(&queries, att, &mut out);
    });
}
