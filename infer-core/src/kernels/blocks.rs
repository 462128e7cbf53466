//! Walks over blocks of rows and pairs of heads, shared by kernels; a closure computes each block
//! or pair.
//!
//! All of this is inlined together with its closures, so that it is compiled for the instruction
//! set of the kernel that calls it.

use super::table::Heads;
use crate::math::dot;
use crate::matrix::{rows_of, rows_of_mut};
use crate::panel::Panel;
use crate::plan::block_len;

/// Calls `dot_rows(b, w, x, out)` for `ROWS` whole rows of weights at a time with each row `b` of
/// x; rows that are left over are dotted one by one. Weights outside, batch inside: a block of rows
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
