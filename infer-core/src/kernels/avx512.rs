//! AVX-512 kernels: attention of one token for two query heads that share a key/value head, one in
//! each half of a register, so that the eight lanes of the contract stay what they are; and, in
//! files of their own, products and attention of many tokens. Norms, SwiGLU, quantising and the f32
//! product of one token are AVX2's, and with VNNI the int8 product takes its instruction.
//!
//! Tried and rejected: weights of the two heads apart from each other in memory, as AVX2 has them,
//! costs all that is gained.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use self::vectors::exp2_score;
use super::avx2;
use super::table::{Heads, Kernels};
use crate::math::{LANES, sum_lanes};
use crate::plan::block_len;

mod attention;
mod batch;
mod vectors;

/// The kernels, if this machine has AVX2 and AVX-512 with BW, DQ and VL, as all have but the first.
pub(super) fn avx512() -> Option<Kernels> {
    let kernels =
        Kernels { name: "avx512", attend, batch: Some(batch::AVX512), ..avx2::avx_vnni().or_else(avx2::avx2)? };
    let detected = std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl");
    detected.then_some(kernels)
}

/// The kernels, if this machine has AVX-512 with VNNI too.
pub(super) fn avx512_vnni() -> Option<Kernels> {
    let (matmul_q8, batch) = (avx2::matmul_q8::matmul_q8_avx512_vnni, Some(batch::VNNI));
    let kernels = Kernels { name: "avx512-vnni", matmul_q8, batch, ..avx512()? };
    std::is_x86_feature_detected!("avx512vnni").then_some(kernels)
}

/// Eight positions of two heads.
type Block = [[f32; LANES]; 2];

fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    let pair = 2 * heads.head_size;
    if !avx2::attention::is_whole(heads) || !heads.q.len().is_multiple_of(pair) {
        return avx2::attention::attend(heads, att, out);
    }
    let att = att.chunks_exact_mut(2 * block_len(heads.positions));
    for ((q, att), out) in heads.q.chunks_exact(pair).zip(att).zip(out.chunks_exact_mut(pair)) {
        // SAFETY: AVX-512 was detected, as `attend` is in the table of `avx512` only;
        // `is_whole(heads)` was checked, `q` and `out` are those of two heads, and `att` has two
        // blocks of weights for each eight positions or part of them.
        unsafe { attend_pair(q, heads, att.as_chunks_mut().0.as_chunks_mut().0, out) }
    }
}

/// # Safety
/// `is_whole(heads)`, `q` and `out` are (2, head_size), and `att` has a block for each eight
/// positions or part of them.
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
unsafe fn attend_pair(q: &[f32], heads: &Heads<'_>, att: &mut [Block], out: &mut [f32]) {
    let (q0, q1) = q.split_at(heads.head_size);
    let max = scores([q0.as_chunks().0, q1.as_chunks().0], heads, att);
    let sums = numerators(max, att);
    let columns = heads.head_size / LANES;
    let mut first = 0;
    // SAFETY: a head has `columns` columns; the caller vouches for the rest.
    unsafe {
        while first + 2 <= columns {
            weigh::<2>(att, sums, heads, first, out);
            first += 2;
        }
        if first < columns {
            weigh::<1>(att, sums, heads, first, out);
        }
    }
}

/// `att[t] = dot(q, key t) · scale`, minus infinity behind the last position. Returns the largest
/// of each head.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn scores(q: [&[[f32; LANES]]; 2], heads: &Heads<'_>, att: &mut [Block]) -> [f32; 2] {
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let scale = _mm512_set1_ps(heads.scale);
    let mut max = lowest;
    let blocks = att.iter_mut().zip(heads.keys.chunks_exact(heads.head_size));
    for ((att, keys), start) in blocks.zip((0..heads.positions).step_by(LANES)) {
        let (keys, _) = keys.as_chunks::<LANES>();
        let mut l = [_mm512_setzero_ps(); LANES]; // by dimension mod 8
        for (i, ((q0, q1), keys)) in q[0].iter().zip(q[1]).zip(keys).enumerate() {
            for d in 0..LANES {
                let q = _mm512_mask_broadcastss_ps(_mm512_set1_ps(q0[d]), 0xff00, _mm_set_ss(q1[d]));
                let product = _mm512_mul_ps(twice(&keys[d]), q);
                // Adding the first product to 0 would change nothing but the sign of a zero, which
                // exp does not see.
                l[d] = if i == 0 { product } else { _mm512_add_ps(l[d], product) };
            }
        }
        let t = [0, 1, 2, 3].map(|i| _mm512_add_ps(l[i], l[i + 4]));
        let scores = _mm512_mul_ps(_mm512_add_ps(_mm512_add_ps(t[0], t[2]), _mm512_add_ps(t[1], t[3])), scale);
        let positions = (heads.positions - start).min(LANES);
        let mask = 0xffff >> (2 * LANES - positions);
        let scores = _mm512_mask_mov_ps(lowest, mask | mask << LANES, scores);
        max = _mm512_max_ps(scores, max); // max where a score is NaN, which makes the sum NaN instead
        store(att, scores);
    }
    let mut lanes = Block::default();
    store(&mut lanes, max);
    lanes.map(|lanes| lanes.into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max }))
}

/// `att = 2^(att - max)`. Returns the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn numerators(max: [f32; 2], att: &mut [Block]) -> [f32; 2] {
    let max = load(&max.map(|max| [max; LANES]));
    let mut sums = _mm512_setzero_ps();
    for att in att {
        let x = exp2_score(_mm512_sub_ps(load(att), max));
        sums = _mm512_add_ps(sums, x);
        store(att, x);
    }
    let mut lanes = Block::default();
    store(&mut lanes, sums);
    lanes.map(sum_lanes)
}

/// `out[h] = Σ_t att[h][t] · values[t] / sums[h]`, sequential over positions, for `C` columns of
/// eight dimensions from column `first` on.
///
/// # Safety
/// `is_whole(heads)`, and a head has these columns.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
unsafe fn weigh<const C: usize>(att: &[Block], sums: [f32; 2], heads: &Heads<'_>, first: usize, out: &mut [f32]) {
    let mut weighed = [[_mm256_setzero_ps(); C]; 2];
    let mut value = heads.values.as_ptr().wrapping_add(first * LANES);
    #[allow(clippy::needless_range_loop)] // as the formula has it
    let mut add = |att: &Block, i: usize| {
        for c in 0..C {
            // SAFETY: each position has a row of head_size values, as `is_whole` says, and `add` is
            // called once for each; columns `first` to `first + C` are within a row.
            let value = unsafe { _mm256_loadu_ps(value.add(c * LANES)) };
            for h in 0..2 {
                weighed[h][c] = _mm256_add_ps(weighed[h][c], _mm256_mul_ps(_mm256_set1_ps(att[h][i]), value));
            }
        }
        value = value.wrapping_add(heads.head_size);
    };
    for (att, start) in att.iter().zip((0..heads.positions).step_by(LANES)) {
        if start + LANES <= heads.positions {
            (0..LANES).for_each(|i| add(att, i)); // unrolled
        } else {
            (0..heads.positions - start).for_each(|i| add(att, i));
        }
    }
    for ((out, weighed), sum) in out.chunks_exact_mut(heads.head_size).zip(weighed).zip(sums) {
        let inverse = _mm256_set1_ps(1.0 / sum);
        for (out, x) in out.as_chunks_mut::<LANES>().0.iter_mut().skip(first).zip(weighed) {
            // SAFETY: `out` has room for eight numbers.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(x, inverse)) }
        }
    }
}

/// Eight numbers, the same in both halves.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn twice(x: &[f32; LANES]) -> __m512 {
    // SAFETY: `x` has the eight numbers that are loaded.
    _mm512_broadcast_f32x8(unsafe { _mm256_loadu_ps(x.as_ptr()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn load(x: &Block) -> __m512 {
    // SAFETY: `x` has the sixteen numbers that are loaded.
    unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn store(x: &mut Block, value: __m512) {
    // SAFETY: `x` has room for the sixteen numbers.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr().cast(), value) }
}
