//! Portable kernels. They define the result; the compiler may vectorise them, since eight independent lanes leave it
//! the freedom that a single running sum would not.

use crate::math::{LANES, dot, softmax, sum_lanes};
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

/// Rows that share each load of x. Four rows of eight lanes are eight SSE registers, and half of NEON's.
const ROWS: usize = 4;

pub(crate) fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    if cols == 0 {
        return;
    }
    let block = ROWS.saturating_mul(cols);
    // Weights outside, batch inside: a block of rows stays in the first-level cache for the whole batch.
    for (i, w) in w.chunks(block).enumerate() {
        for (b, x) in x.chunks_exact(cols).enumerate() {
            let Some(out) = out.row(b).get_mut(i * ROWS..) else { return };
            match (split_rows(w, cols), out.first_chunk_mut::<ROWS>()) {
                (Some(rows), Some(out)) => *out = dot_rows(rows, x),
                _ => w.chunks_exact(cols).zip(out).for_each(|(w, out)| *out = dot(w, x)),
            }
        }
    }
}

fn split_rows(w: &[f32], cols: usize) -> Option<[&[f32]; ROWS]> {
    let (a, rest) = w.split_at_checked(cols)?;
    let (b, rest) = rest.split_at_checked(cols)?;
    let (c, rest) = rest.split_at_checked(cols)?;
    let (d, _) = rest.split_at_checked(cols)?;
    Some([a, b, c, d])
}

/// [`dot`] of four rows at once.
fn dot_rows([a, b, c, d]: [&[f32]; ROWS], x: &[f32]) -> [f32; ROWS] {
    let mut lanes = [[0.0; LANES]; ROWS];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let ((c, c_tail), (d, d_tail)) = (c.as_chunks::<LANES>(), d.as_chunks::<LANES>());
    let (x, x_tail) = x.as_chunks::<LANES>();
    for ((((a, b), c), d), x) in a.iter().zip(b).zip(c).zip(d).zip(x) {
        for (lanes, w) in lanes.iter_mut().zip([a, b, c, d]) {
            for i in 0..LANES {
                lanes[i] += w[i] * x[i];
            }
        }
    }
    for (lanes, w) in lanes.iter_mut().zip([a_tail, b_tail, c_tail, d_tail]) {
        for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x_tail) {
            *lane += w * x;
        }
    }
    lanes.map(sum_lanes)
}

pub(crate) fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let (cols, group_size) = (w.cols.max(1), w.group_size.max(1));
    let groups = (cols / group_size).max(1);
    for (r, (q, s)) in w.q.chunks_exact(cols).zip(w.s.chunks_exact(groups)).enumerate() {
        for (b, (x, xs)) in x.chunks_exact(cols).zip(xs.chunks_exact(groups)).enumerate() {
            if let Some(out) = out.row(b).get_mut(r) {
                *out = dot_q8(q, s, x, xs, group_size);
            }
        }
    }
}

fn dot_q8(w: &[i8], ws: &[f32], x: &[i8], xs: &[f32], group_size: usize) -> f32 {
    let mut lanes = [0.0; LANES];
    let products = w.chunks_exact(group_size).zip(x.chunks_exact(group_size)).zip(ws.iter().zip(xs));
    for (g, ((w, x), (ws, xs))) in products.enumerate() {
        // At most 1024 · 127 · 128, far from overflow.
        let sum: i32 = w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
        lanes[g % LANES] += (sum as f32 * ws) * xs;
    }
    sum_lanes(lanes)
}

pub(crate) fn attend(q: &[f32], scale: f32, keys: &[f32], values: &[f32], att: &mut [f32], out: &mut [f32]) {
    let head_size = q.len();
    if head_size == 0 {
        return;
    }
    for (att, key) in att.iter_mut().zip(keys.chunks_exact(head_size)) {
        *att = dot(q, key) * scale;
    }
    softmax(att);
    out.fill(0.0);
    // Sequential over positions: the order is part of the contract, and it vectorises over head_size.
    for (&att, value) in att.iter().zip(values.chunks_exact(head_size)) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += att * value;
        }
    }
}
