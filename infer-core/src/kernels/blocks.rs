//! How kernels walk: over blocks of rows in a matrix product, over pairs of heads in attention. What
//! becomes of a block or pair is the kernel's own business.
//!
//! All of this is inlined together with its closures, so that it is compiled for the instruction set
//! of the kernel that calls it.

use super::table::Heads;
use crate::math::{dot, dot_q8};
use crate::matrix::{Q8Matrix, rows_of, rows_of_mut};
use crate::panel::Panel;
use crate::plan::block_len;

/// Calls `dot_rows(b, w, x, out)` for `ROWS` whole rows of weights at a time with each row `b` of x;
/// rows that are left over are dotted one by one. Weights outside, batch inside: a block of rows
/// stays in the first-level cache for the whole batch.
#[inline(always)]
pub(super) fn matmul_f32<const ROWS: usize>(
    w: &[f32],
    cols: usize,
    x: &[f32],
    out: &mut Panel<'_>,
    dot_rows: impl Fn(usize, &[f32], &[f32], &mut [f32; ROWS]),
) {
    let cols = cols.max(1);
    let block = ROWS.saturating_mul(cols).max(1);
    for (i, w) in w.chunks(block).enumerate() {
        for (b, x) in x.chunks_exact(cols).enumerate() {
            let Some(out) = out.row(b).get_mut(i * ROWS..) else { return };
            match out.first_chunk_mut() {
                Some(out) if w.len() == block => dot_rows(b, w, x, out),
                _ => w.chunks_exact(cols).zip(out).for_each(|(w, out)| *out = dot(w, x)),
            }
        }
    }
}

/// Whole rows of an int8 matrix, and one row of quantised x.
#[derive(Clone, Copy)]
pub(super) struct Q8Rows<'a> {
    /// (rows, cols)
    pub q: &'a [i8],
    /// (rows, cols / group_size)
    pub s: &'a [f32],
    /// (cols)
    pub x: &'a [i8],
    /// (cols / group_size)
    pub xs: &'a [f32],
    pub group_size: usize,
}

/// [`matmul_f32`] for an int8 matrix: calls `dot_rows(b, rows, out)`.
#[inline(always)]
pub(super) fn matmul_q8<const ROWS: usize>(
    w: &Q8Matrix<'_>,
    x: &[i8],
    xs: &[f32],
    out: &mut Panel<'_>,
    dot_rows: impl Fn(usize, Q8Rows<'_>, &mut [f32; ROWS]),
) {
    let (cols, group_size) = (w.cols.max(1), w.group_size.max(1));
    let groups = (cols / group_size).max(1);
    let (q_block, s_block) = (ROWS.saturating_mul(cols).max(1), ROWS.saturating_mul(groups).max(1));
    for (i, (q, s)) in w.q.chunks(q_block).zip(w.s.chunks(s_block)).enumerate() {
        for (b, (x, xs)) in x.chunks_exact(cols).zip(xs.chunks_exact(groups)).enumerate() {
            let Some(out) = out.row(b).get_mut(i * ROWS..) else { return };
            match out.first_chunk_mut() {
                Some(out) if (q.len(), s.len()) == (q_block, s_block) => {
                    dot_rows(b, Q8Rows { q, s, x, xs, group_size }, out);
                }
                _ => {
                    let rows = q.chunks_exact(cols).zip(s.chunks_exact(groups)).zip(out);
                    rows.for_each(|((q, s), out)| *out = dot_q8(q, s, x, xs, group_size));
                }
            }
        }
    }
}

/// One of the query heads of [`Heads`].
pub(super) struct Head<'a> {
    /// (head_size)
    pub q: &'a [f32],
    /// (positions rounded up to a multiple of 8), for its attention weights
    pub att: &'a mut [f32],
    /// (head_size)
    pub out: &'a mut [f32],
}

/// Calls `attend_pair` for two heads at a time, which then share each load of the values, and
/// `attend_last` for the one that an odd number leaves.
#[inline(always)]
pub(super) fn in_pairs(
    heads: &Heads<'_>,
    att: &mut [f32],
    out: &mut [f32],
    mut attend_pair: impl FnMut([Head<'_>; 2]),
    mut attend_last: impl FnMut([Head<'_>; 1]),
) {
    let att = rows_of_mut(att, block_len(heads.positions));
    let rows = rows_of(heads.q, heads.head_size).zip(att).zip(rows_of_mut(out, heads.head_size));
    let mut rows = rows.map(|((q, att), out)| Head { q, att, out });
    while let Some(first) = rows.next() {
        match rows.next() {
            Some(second) => attend_pair([first, second]),
            None => attend_last([first]),
        }
    }
}
