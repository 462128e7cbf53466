//! The walk over blocks of rows of an int8 matrix, as `blocks.rs` has it for f32: for the instruction
//! sets that compute several rows at once.

use crate::math::dot_q8;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

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

/// Calls `dot_rows(b, rows, out)` for `ROWS` whole rows of weights at a time with each row `b` of x;
/// rows that are left over are dotted one by one. A matrix with rows of no group is left alone.
#[inline(always)]
pub(super) fn matmul_q8<const ROWS: usize>(
    w: &Q8Matrix<'_>,
    x: &[i8],
    xs: &[f32],
    out: &mut Panel<'_>,
    dot_rows: impl Fn(usize, Q8Rows<'_>, &mut [f32; ROWS]),
) {
    // All lengths follow from these two, so that registers suffice where the group size is a constant.
    let (cols, group_size) = (w.cols, w.group_size);
    let groups = cols.checked_div(group_size).unwrap_or(0);
    if groups == 0 {
        return;
    }
    let blocks = w.q.chunks(ROWS * cols).zip(w.s.chunks(ROWS * groups));
    for (i, (q, s)) in blocks.enumerate() {
        for (b, (x, xs)) in x.chunks_exact(cols).zip(xs.chunks_exact(groups)).enumerate() {
            let Some(out) = out.row(b).get_mut(i * ROWS..) else { return };
            match out.first_chunk_mut() {
                Some(out) if q.len() == ROWS * cols && s.len() == ROWS * groups => {
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
