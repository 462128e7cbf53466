//! The walk over a matrix that memory or a far cache delivers: in eight stripes of rows side by
//! side, of which a block takes a row each.
//!
//! Memory is read the faster, the more cache lines are on their way. A core's prefetchers follow
//! several streams at a time, and eight that go on from block to block keep more lines on their way
//! than rows that follow each other, which are one stream, or eight short ones.

use super::vectors::ROWS;
use crate::panel::Panel;

/// Rows of a block, for a token.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub token: usize,
    /// The first row, below `apart`.
    pub first: usize,
    /// The [`ROWS`] rows are so many rows apart: an eighth of all rows, so that all of them exist.
    pub apart: usize,
}

/// Calls `dot_rows(block, out)` for all blocks, and `dot(token, row)` for the rows that are left
/// over. Weights outside, tokens inside: the rows of a block stay near for all tokens.
#[inline(always)]
pub(super) fn in_stripes(
    rows: usize,
    n_tokens: usize,
    out: &mut Panel<'_>,
    dot_rows: impl Fn(Block, &mut [f32; ROWS]),
    dot: impl Fn(usize, usize) -> f32,
) {
    let apart = rows / ROWS;
    for first in 0..apart {
        for token in 0..n_tokens {
            let mut sums = [0.0; ROWS];
            dot_rows(Block { token, first, apart }, &mut sums);
            let places = out.row(token).iter_mut().skip(first).step_by(apart);
            places.zip(sums).for_each(|(out, sum)| *out = sum);
        }
    }
    for token in 0..n_tokens {
        for (row, out) in out.row(token).iter_mut().enumerate().take(rows).skip(ROWS * apart) {
            *out = dot(token, row);
        }
    }
}
