//! The portable kernels, which define the result.
//!
//! Read them with the types in `table.rs`, which state the formulas. The order of operations is the
//! contract; everything else is written so that compilers vectorise it, for which eight independent
//! lanes leave them the freedom that a single running sum would not. No loop has a bounds check
//! that could panic.

use super::blocks::{self, Head, in_pairs};
use super::table::{Heads, HeadsQ8, Kernels, Q8_POSITIONS};
use crate::math::{LANES, ROUND, dot_q8, exp2_score, largest_magnitude, max, rmsnorm, sum, sum_lanes, swiglu};
use crate::matrix::{Q8Matrix, rows_of, rows_of_mut};
use crate::panel::Panel;
use crate::plan::block_len;
use crate::quant::quantize;

/// The portable kernels, which define the result.
pub(super) const SCALAR: Kernels = Kernels {
    name: "scalar",
    matmul_f32,
    matmul_q8,
    quantize,
    attend,
    attend_q8,
    rmsnorm,
    swiglu,
    #[cfg(feature = "std")]
    batch: None,
};

/// Rows that share each load of x. Four rows of eight lanes are eight SSE registers, and half of
/// NEON's.
const ROWS: usize = 4;

#[inline(always)]
pub(super) fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    blocks::matmul_f32(w, cols, x, out, |_, w, x, out| {
        if let Some(rows) = split_rows(w, x.len()) {
            *out = dot_rows(rows, x);
        }
    });
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

#[inline(always)]
pub(super) fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let (cols, group_size) = (w.cols.max(1), w.group_size.max(1));
    let groups = (cols / group_size).max(1);
    for (r, (q, s)) in rows_of(w.q, cols).zip(rows_of(w.s, groups)).enumerate() {
        for (b, (x, xs)) in rows_of(x, cols).zip(rows_of(xs, groups)).enumerate() {
            if let Some(out) = out.row(b).get_mut(r) {
                *out = dot_q8(q, s, x, xs, group_size);
            }
        }
    }
}

#[inline(always)]
pub(super) fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    in_pairs(heads, att, out, |pair| attend_heads(heads, pair), |last| attend_heads(heads, last));
}

/// Attention of `H` heads. Two hide each other's latency, and share each load of the values.
#[inline(always)]
fn attend_heads<const H: usize>(heads: &Heads<'_>, mut each: [Head<'_>; H]) {
    let sums = each.each_mut().map(|head| attention_weights(head.q, heads, head.att));
    weigh(heads, &mut each);
    for (head, sum) in each.iter_mut().zip(sums) {
        let inverse = 1.0 / sum;
        head.out.iter_mut().for_each(|out| *out *= inverse);
    }
}

/// `att[t] = 2^(dot(q, key t) · scale - max)`, in whole vectors: slots behind the last position get
/// the weight 0, which changes no sum. Returns the sum.
#[inline(always)]
fn attention_weights(q: &[f32], heads: &Heads<'_>, att: &mut [f32]) -> f32 {
    scores(q, heads.keys, heads.scale, att.as_chunks_mut().0);
    numerators(att, heads.positions)
}

/// Turns scores into the numerators of softmax, 0 behind the last position, and returns their sum.
#[inline(always)]
fn numerators(att: &mut [f32], positions: usize) -> f32 {
    if let Some(rest) = att.get_mut(positions..) {
        rest.fill(f32::NEG_INFINITY);
    }
    let max = max(att);
    for x in att.iter_mut() {
        *x = exp2_score(*x - max);
    }
    sum(att)
}

/// `att[t] = dot(q, key t) · scale`. Eight positions at a time: each has the eight lanes of
/// [`dot`], so that vectors over positions give the bits of one position after the other.
#[inline(always)]
fn scores(q: &[f32], keys: &[[f32; LANES]], scale: f32, att: &mut [[f32; LANES]]) {
    let head_size = q.len().max(1);
    let (q, q_tail) = q.as_chunks::<LANES>();
    for (keys, att) in keys.chunks_exact(head_size).zip(att) {
        let (keys, keys_tail) = keys.as_chunks::<LANES>();
        let mut l = [[0.0; LANES]; LANES]; // [dimension mod 8][position]
        for (q, keys) in q.iter().zip(keys) {
            // Written out: in a loop, the compiler keeps the sums in memory.
            l[0] = add(l[0], scaled(&keys[0], q[0]));
            l[1] = add(l[1], scaled(&keys[1], q[1]));
            l[2] = add(l[2], scaled(&keys[2], q[2]));
            l[3] = add(l[3], scaled(&keys[3], q[3]));
            l[4] = add(l[4], scaled(&keys[4], q[4]));
            l[5] = add(l[5], scaled(&keys[5], q[5]));
            l[6] = add(l[6], scaled(&keys[6], q[6]));
            l[7] = add(l[7], scaled(&keys[7], q[7]));
        }
        for ((l, q), keys) in l.iter_mut().zip(q_tail).zip(keys_tail) {
            *l = add(*l, scaled(keys, *q));
        }
        // sum_lanes, eight times at once
        let t = [add(l[0], l[4]), add(l[1], l[5]), add(l[2], l[6]), add(l[3], l[7])];
        *att = scaled(&add(add(t[0], t[2]), add(t[1], t[3])), scale);
    }
}

#[inline(always)]
fn add(mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
    for i in 0..LANES {
        a[i] += b[i];
    }
    a
}

#[inline(always)]
fn scaled(a: &[f32; LANES], factor: f32) -> [f32; LANES] {
    let mut product = *a;
    for x in &mut product {
        *x *= factor;
    }
    product
}

/// `out[h] = Σ_t att[h][t] · values[t]`, sequential over positions: the order is part of the
/// contract. As many dimensions at a time as have their sums in registers; head sizes are even.
#[inline(always)]
fn weigh<const H: usize>(heads: &Heads<'_>, each: &mut [Head<'_>; H]) {
    let mut first = 0;
    while first + 16 <= heads.head_size {
        weigh_part::<H, 16>(heads, each, first);
        first += 16;
    }
    while first + 8 <= heads.head_size {
        weigh_part::<H, 8>(heads, each, first);
        first += 8;
    }
    while first + 2 <= heads.head_size {
        weigh_part::<H, 2>(heads, each, first);
        first += 2;
    }
}

/// [`weigh`] for dimensions `first` to `first + W`.
#[inline(always)]
fn weigh_part<const H: usize, const W: usize>(heads: &Heads<'_>, each: &mut [Head<'_>; H], first: usize) {
    let mut sums = [[0.0; W]; H];
    for (t, value) in heads.values.chunks_exact(heads.head_size.max(1)).take(heads.positions).enumerate() {
        let Some(value) = value.get(first..).and_then(|value| value.first_chunk::<W>()) else { return };
        for (sums, head) in sums.iter_mut().zip(&*each) {
            let Some(weight) = head.att.get(t) else { return };
            for i in 0..W {
                sums[i] += weight * value[i];
            }
        }
    }
    for (head, sums) in each.iter_mut().zip(sums) {
        if let Some(out) = head.out.get_mut(first..).and_then(|out| out.first_chunk_mut()) {
            *out = sums;
        }
    }
}

#[inline(always)]
pub(super) fn attend_q8(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]) {
    let head_size = heads.head_size.max(1);
    let q = rows_of(heads.q, head_size).zip(heads.q_scales);
    let att = rows_of_mut(att, block_len(heads.positions));
    for (((q, q_scale), att), out) in q.zip(att).zip(rows_of_mut(out, head_size)) {
        scores_q8(q, q_scale * heads.scale, heads, att.as_chunks_mut().0);
        let sum = numerators(att, heads.positions);
        let value_scale = quantize_weights(att, heads);
        weigh_q8(att, heads, value_scale / sum, out);
    }
}

#[inline(always)]
fn scores_q8(q: &[i8], scale: f32, heads: &HeadsQ8<'_>, att: &mut [[f32; LANES]]) {
    let blocks = rows_of(heads.keys, LANES * heads.head_size).zip(heads.key_scales.as_chunks::<LANES>().0);
    for ((keys, key_scales), att) in blocks.zip(att) {
        let mut sums = [0; LANES];
        for (keys, q) in keys.as_chunks::<{ 4 * LANES }>().0.iter().zip(q.as_chunks::<4>().0) {
            for (sum, key) in sums.iter_mut().zip(keys.as_chunks::<4>().0) {
                *sum += key.iter().zip(q).map(|(&k, &q)| i32::from(k) * i32::from(q)).sum::<i32>();
            }
        }
        for ((att, sum), key_scale) in att.iter_mut().zip(sums).zip(key_scales) {
            *att = (sum as f32 * key_scale) * scale;
        }
    }
}

/// Puts a 16-bit integer in the place of each weight, and returns the unit of these integers.
#[inline(always)]
fn quantize_weights(att: &mut [f32], heads: &HeadsQ8<'_>) -> f32 {
    let scales = heads.value_scales.get(..heads.positions).unwrap_or(&[]);
    let (unit, factor) = weight_unit(largest_magnitude(scales));
    for (weight, scale) in att.iter_mut().zip(scales) {
        // The bits of the integer take the place of the f32, as there is no other room for them.
        *weight = f32::from_bits((*weight * (scale * factor) + ROUND).to_bits() & 0xffff);
    }
    unit
}

/// The unit of quantised weights, and its inverse, for values with this largest scale. A scale that
/// is not finite makes the unit NaN or infinite.
#[inline(always)]
pub(super) fn weight_unit(max: f32) -> (f32, f32) {
    if max == 0.0 { (0.0, 0.0) } else { (max / 32767.0, 32767.0 / max) }
}

#[inline(always)]
fn weigh_q8(att: &[f32], heads: &HeadsQ8<'_>, scale: f32, out: &mut [f32]) {
    out.fill(0.0);
    let blocks = Q8_POSITIONS / LANES;
    let values = heads.values.chunks((blocks * LANES * heads.head_size).max(1));
    for (att, values) in att.as_chunks::<LANES>().0.chunks(blocks).zip(values) {
        for (d, out) in out.iter_mut().enumerate() {
            let values = values.as_chunks::<LANES>().0.iter().skip(d).step_by(heads.head_size.max(1));
            let products = att.iter().zip(values).map(|(att, values)| {
                let products = att.iter().zip(values).map(|(a, &v)| i32::from(a.to_bits() as i16) * i32::from(v));
                products.sum::<i32>()
            });
            *out += products.sum::<i32>() as f32;
        }
    }
    out.iter_mut().for_each(|out| *out *= scale);
}
