//! Attention for AVX2, in the order of the scalar kernel: eight positions are a register when
//! scores are computed, eight dimensions when values are weighed.

use core::arch::x86_64::*;

use super::vectors::{load, store, tail_mask};
use crate::kernels::scalar;
use crate::kernels::table::Heads;
use crate::math::{EXP2_G, LANES, ROUND, SMALLEST_SCORE, sum_lanes};
use crate::plan::block_len;

pub(crate) fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    // SAFETY: AVX2 was detected.
    unsafe { attend_avx2(heads, att, out) }
}

#[target_feature(enable = "avx2")]
fn attend_avx2(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    let head_size = heads.head_size;
    if !is_whole(heads) {
        return scalar::attend(heads, att, out);
    }
    let mut q = heads.q.chunks_exact(head_size);
    let mut att = att.chunks_exact_mut(block_len(heads.positions));
    let mut out = out.chunks_exact_mut(head_size);
    // Two heads share each load of the values, and hide each other's latency.
    while let (Some(q0), Some(att0), Some(out0)) = (q.next(), att.next(), out.next()) {
        if let (Some(q1), Some(att1), Some(out1)) = (q.next(), att.next(), out.next()) {
            let max = [scores(q0, heads, att0), scores(q1, heads, att1)];
            let sums = [numerators(att0, max[0]), numerators(att1, max[1])];
            // SAFETY: the heads are whole, and each has a weight per position.
            unsafe { weigh([att0, att1], sums, heads, [out0, out1]) };
        } else {
            let max = scores(q0, heads, att0);
            let sum = numerators(att0, max);
            // SAFETY: as above.
            unsafe { weigh([att0], [sum], heads, [out0]) };
        }
    }
}

/// `att = 2^(att - max)`. Returns the sum.
#[inline]
#[target_feature(enable = "avx2")]
fn numerators(att: &mut [f32], max: f32) -> f32 {
    let max = _mm256_set1_ps(max);
    let mut sum = _mm256_setzero_ps();
    for att in att.as_chunks_mut::<LANES>().0 {
        let x = exp2_score(_mm256_sub_ps(load(att), max));
        sum = _mm256_add_ps(sum, x);
        store(att, x);
    }
    let mut lanes = [0.0; LANES];
    store(&mut lanes, sum);
    sum_lanes(lanes)
}

/// Whether heads are whole vectors, and the values are there.
pub(crate) fn is_whole(heads: &Heads<'_>) -> bool {
    let head_size = heads.head_size;
    let whole = head_size > 0 && head_size.is_multiple_of(LANES);
    whole && heads.positions > 0 && heads.values.len() >= heads.positions * head_size
}

/// `att[t] = dot(q, key t) · scale`, minus infinity behind the last position. Returns the largest.
#[inline]
#[target_feature(enable = "avx2")]
fn scores(q: &[f32], heads: &Heads<'_>, att: &mut [f32]) -> f32 {
    let Some((last, att)) = att.as_chunks_mut::<LANES>().0.split_last_mut() else { return f32::NEG_INFINITY };
    let lowest = _mm256_set1_ps(f32::NEG_INFINITY);
    let scale = _mm256_set1_ps(heads.scale);
    let (q, _) = q.as_chunks::<LANES>();
    let mut blocks = heads.keys.chunks_exact(heads.head_size);
    let mut max = lowest;
    for (att, keys) in att.iter_mut().zip(&mut blocks) {
        let scores = block_scores(q, keys, scale);
        max = _mm256_max_ps(scores, max); // max where a score is NaN, which makes the sum NaN instead
        store(att, scores);
    }
    let Some(keys) = blocks.next() else { return f32::NEG_INFINITY };
    let mask = _mm256_castsi256_ps(tail_mask((heads.positions - 1) % LANES + 1));
    let scores = _mm256_blendv_ps(lowest, block_scores(q, keys, scale), mask);
    store(last, scores);
    let mut lanes = [0.0; LANES];
    store(&mut lanes, _mm256_max_ps(scores, max));
    lanes.into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
}

/// Scores of eight positions, whose keys lie by dimension.
#[inline]
#[target_feature(enable = "avx2")]
fn block_scores(q: &[[f32; LANES]], keys: &[[f32; LANES]], scale: __m256) -> __m256 {
    let (keys, _) = keys.as_chunks::<LANES>();
    let mut l = [_mm256_setzero_ps(); LANES]; // by dimension mod 8
    for (i, (q, keys)) in q.iter().zip(keys).enumerate() {
        for ((l, q), key) in l.iter_mut().zip(q).zip(keys) {
            let product = _mm256_mul_ps(load(key), _mm256_set1_ps(*q));
            // Adding the first product to 0 would change nothing but the sign of a zero, which exp
            // does not see.
            *l = if i == 0 { product } else { _mm256_add_ps(*l, product) };
        }
    }
    let t = [0, 1, 2, 3].map(|i| _mm256_add_ps(l[i], l[i + 4]));
    _mm256_mul_ps(_mm256_add_ps(_mm256_add_ps(t[0], t[2]), _mm256_add_ps(t[1], t[3])), scale)
}

/// [`math::exp2_score`](crate::math::exp2_score).
#[inline]
#[target_feature(enable = "avx2")]
fn exp2_score(x: __m256) -> __m256 {
    let c = |x| _mm256_set1_ps(x);
    let shifted = _mm256_add_ps(x, c(ROUND));
    let f = _mm256_sub_ps(x, _mm256_sub_ps(shifted, c(ROUND)));
    let [g0, g1, g2, g3, g4] = EXP2_G;
    let y = [g3, g2, g1, g0, 1.0].into_iter().fold(c(g4), |y, g| _mm256_add_ps(_mm256_mul_ps(y, f), c(g)));
    let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
    let power = _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_castps_si256(c(1.0))));
    _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, c(SMALLEST_SCORE)), _mm256_mul_ps(y, power))
}

/// `out[h] = Σ_t att[h][t] · values[t] / sums[h]` for `H` heads, sequential over positions.
///
/// # Safety
/// `is_whole(heads)`, and a weight per position in each `att`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn weigh<const H: usize>(att: [&mut [f32]; H], sums: [f32; H], heads: &Heads<'_>, mut out: [&mut [f32]; H]) {
    let inverse = sums.map(|sum| 1.0 / sum);
    let columns = heads.head_size / LANES;
    let mut first = 0;
    // SAFETY: these columns are there.
    unsafe {
        while first + 2 <= columns {
            weigh_columns::<H, 2>(&att, inverse, heads, first, &mut out);
            first += 2;
        }
        if first < columns {
            weigh_columns::<H, 1>(&att, inverse, heads, first, &mut out);
        }
    }
}

/// [`weigh`] for `C` columns of eight dimensions from column `first` on.
///
/// # Safety
/// As [`weigh`], and a head has these columns.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn weigh_columns<const H: usize, const C: usize>(
    att: &[&mut [f32]; H],
    inverse: [f32; H],
    heads: &Heads<'_>,
    first: usize,
    out: &mut [&mut [f32]; H],
) {
    let mut sums = [[_mm256_setzero_ps(); C]; H];
    let mut value = heads.values.as_ptr().wrapping_add(first * LANES);
    #[allow(clippy::needless_range_loop)] // as the formula has it
    let mut add = |t: usize| {
        for c in 0..C {
            // SAFETY: position t has values and weights.
            unsafe {
                let value = _mm256_loadu_ps(value.add(c * LANES));
                for h in 0..H {
                    let weight = _mm256_set1_ps(*att[h].get_unchecked(t));
                    sums[h][c] = _mm256_add_ps(sums[h][c], _mm256_mul_ps(weight, value));
                }
            }
        }
        value = value.wrapping_add(heads.head_size);
    };
    let whole = heads.positions / LANES * LANES;
    for t in (0..whole).step_by(LANES) {
        (t..t + LANES).for_each(&mut add); // unrolled
    }
    (whole..heads.positions).for_each(add);
    for ((out, sums), inverse) in out.iter_mut().zip(sums).zip(inverse) {
        for (out, sum) in out.as_chunks_mut::<LANES>().0.iter_mut().skip(first).zip(sums) {
            store(out, _mm256_mul_ps(sum, _mm256_set1_ps(inverse)));
        }
    }
}
