//! Attention for AVX2, in the order of the scalar kernel: eight positions are a register when
//! scores are computed, eight dimensions when values are weighed.

use core::arch::x86_64::*;

use super::vectors::{add_lanes, load, store, tail_mask};
use crate::kernels::blocks::{Head, in_pairs};
use crate::kernels::scalar;
use crate::kernels::table::Heads;
use crate::math::{EXP2_G, LANES, ROUND, SMALLEST_SCORE, sum_lanes};

pub(crate) fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    // SAFETY: AVX2 was detected (see `TABLE`).
    unsafe { attend_avx2(heads, att, out) }
}

#[target_feature(enable = "avx2")]
fn attend_avx2(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    if !is_whole(heads) {
        return scalar::attend(heads, att, out);
    }
    in_pairs(
        heads,
        att,
        out,
        // SAFETY: `is_whole(heads)` was checked, and the walker gives each head a weight per
        // position, rounded up to whole blocks.
        |pair| unsafe { attend_heads(heads, pair) },
        // SAFETY: as above.
        |last| unsafe { attend_heads(heads, last) },
    );
}

/// # Safety
/// `is_whole(heads)`, and `att` of each head has a weight for each position, rounded up to a
/// multiple of eight.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn attend_heads<const H: usize>(heads: &Heads<'_>, mut each: [Head<'_>; H]) {
    // Scores of both heads before the weights of either: their latencies overlap.
    let max = each.each_mut().map(|head| scores(head.q, heads, head.att));
    let mut sums = max;
    for (sum, head) in sums.iter_mut().zip(&mut each) {
        *sum = numerators(head.att, *sum);
    }
    // SAFETY: the caller vouches for the same.
    unsafe { weigh(heads, &mut each, sums) }
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

/// Whether heads are whole registers, and there are a position at least and values for all of them.
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
    _mm256_mul_ps(add_lanes(l), scale)
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
/// As [`attend_heads`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn weigh<const H: usize>(heads: &Heads<'_>, each: &mut [Head<'_>; H], sums: [f32; H]) {
    let inverse = sums.map(|sum| 1.0 / sum);
    let columns = heads.head_size / LANES;
    let mut first = 0;
    // SAFETY: a head has `columns` columns; the caller vouches for the rest.
    unsafe {
        while first + 2 <= columns {
            weigh_columns::<H, 2>(heads, each, inverse, first);
            first += 2;
        }
        if first < columns {
            weigh_columns::<H, 1>(heads, each, inverse, first);
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
    heads: &Heads<'_>,
    each: &mut [Head<'_>; H],
    inverse: [f32; H],
    first: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); C]; H];
    let mut value = heads.values.as_ptr().wrapping_add(first * LANES);
    let att = each.each_ref().map(|head| head.att.as_ptr());
    #[allow(clippy::needless_range_loop)] // as the formula has it
    let mut add = |t: usize| {
        for c in 0..C {
            // SAFETY: t is below `positions`, for which each head has weights, and values as whole
            // rows of head_size; columns `first` to `first + C` are within one.
            unsafe {
                let value = _mm256_loadu_ps(value.add(c * LANES));
                for h in 0..H {
                    let weight = _mm256_set1_ps(*att[h].add(t));
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
    for ((head, sums), inverse) in each.iter_mut().zip(sums).zip(inverse) {
        for (out, sum) in head.out.as_chunks_mut::<LANES>().0.iter_mut().skip(first).zip(sums) {
            store(out, _mm256_mul_ps(sum, _mm256_set1_ps(inverse)));
        }
    }
}
