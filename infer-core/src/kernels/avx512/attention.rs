//! Attention of many tokens for AVX-512: six queries share each load of keys and values.

use core::arch::x86_64::*;

use super::vectors::exp2_score;
use crate::kernels::batch::tiles;
use crate::kernels::table::Queries;
use crate::math::{LANES, sum_lanes};
use crate::panel::Panel;
use crate::scratch::{QUERY_TILE, att_len};

/// Queries whose scores are computed together: their lanes are 24 registers.
const HALF: usize = QUERY_TILE / 2;
/// Numbers of a register.
const WIDTH: usize = 16;
/// Registers of a query's dimensions that are worked on together: 24 for a tile.
const COLUMNS: usize = 4;

/// A tile of queries, and their attention weights.
struct Tile {
    /// (head_size) each
    q: [*const f32; QUERY_TILE],
    /// (head_size) each
    out: [*mut f32; QUERY_TILE],
    /// Positions to attend to; they never decrease.
    positions: [usize; QUERY_TILE],
    /// (positions, rounded up to whole registers) each
    att: [*mut f32; QUERY_TILE],
}

pub(super) fn attend(queries: &Queries<'_>, att: &mut [f32], out: &mut Panel<'_>) {
    let Queries { q, stride, rows, kv_mul, keys, values, positions, head_size, .. } = *queries;
    let Some(last) = rows.checked_sub(1) else { return };
    let used = positions + last;
    let whole = head_size > 0
        && head_size.is_multiple_of(LANES)
        && q.len() >= last * stride + kv_mul * head_size
        && keys.len() >= used.div_ceil(LANES) * head_size
        && values.len() >= used * head_size
        && att.len() >= att_len(used)
        && out.row(last).len() >= kv_mul * head_size
        && rows * kv_mul >= QUERY_TILE;
    if !whole {
        return;
    }
    let slots = used.next_multiple_of(WIDTH);
    for first in tiles::<QUERY_TILE>(rows * kv_mul) {
        let place = |i: usize| ((first + i) / kv_mul, (first + i) % kv_mul * head_size);
        let tile = Tile {
            q: core::array::from_fn(|i| {
                let (row, dimension) = place(i);
                q.as_ptr().wrapping_add(row * stride + dimension)
            }),
            out: core::array::from_fn(|i| {
                let (row, dimension) = place(i);
                out.row_ptr(row).wrapping_add(dimension)
            }),
            positions: core::array::from_fn(|i| positions + place(i).0),
            att: core::array::from_fn(|i| att.as_mut_ptr().wrapping_add(i * slots)),
        };
        // SAFETY: AVX-512 was detected. All lengths were checked above.
        unsafe {
            let sums = weights(queries, &tile);
            weigh(queries, &tile, sums);
        }
    }
}

/// `att[t] = 2^(dot(q, key t) · scale - max)`, 0 behind the last position. Returns the sums.
///
/// # Safety
/// Queries and keys have whole heads, and `att` is as in [`Tile`].
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
unsafe fn weights(queries: &Queries<'_>, tile: &Tile) -> [f32; QUERY_TILE] {
    let used = tile.positions[QUERY_TILE - 1];
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut max = [lowest; QUERY_TILE];
    for start in (0..used).step_by(WIDTH) {
        for half in [0, HALF] {
            // SAFETY: the caller vouches for the same, and `start` is below `used`.
            let scores = unsafe { scores(queries, [tile.q[half], tile.q[half + 1], tile.q[half + 2]], start) };
            for (i, scores) in (half..).zip(scores) {
                let here = tile.positions[i].saturating_sub(start).min(WIDTH);
                let scores = _mm512_mask_mov_ps(lowest, ((1u32 << here) - 1) as __mmask16, scores);
                max[i] = _mm512_max_ps(scores, max[i]); // max where a score is NaN, which makes the sum NaN instead
                // SAFETY: `att` has whole registers up to `used`.
                unsafe { _mm512_storeu_ps(tile.att[i].add(start), scores) }
            }
        }
    }
    let mut sums = [0.0; QUERY_TILE];
    for ((sum, max), att) in sums.iter_mut().zip(max).zip(tile.att) {
        // SAFETY: as above.
        *sum = unsafe { numerators(att, used, _mm512_reduce_max_ps(max)) };
    }
    sums
}

/// Scores of three queries for the sixteen positions from `start` on.
///
/// # Safety
/// The queries and all keys have whole heads, and there is a key for position `start`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
unsafe fn scores(queries: &Queries<'_>, q: [*const f32; HALF], start: usize) -> [__m512; HALF] {
    let head_size = queries.head_size;
    let last = (queries.keys.len() / head_size).saturating_sub(1);
    // Eight positions each. Without the second block, the first one stands in for it; the caller
    // masks what is behind the last position.
    let (low, high) = (start / LANES, (start / LANES + 1).min(last));
    let mut l = [[_mm512_setzero_ps(); HALF]; LANES]; // by dimension mod 8
    // SAFETY: the caller vouches for whole heads of both blocks and of q.
    unsafe {
        let keys = queries.keys.as_ptr();
        let (low, high) = (keys.add(low * head_size), keys.add(high * head_size));
        for i in (0..head_size).step_by(LANES) {
            for (d, l) in l.iter_mut().enumerate() {
                let low = _mm512_castps256_ps512(_mm256_loadu_ps(low.add(i + d).cast()));
                let key = _mm512_insertf32x8::<1>(low, _mm256_loadu_ps(high.add(i + d).cast()));
                for t in 0..HALF {
                    l[t] = _mm512_add_ps(l[t], _mm512_mul_ps(key, _mm512_set1_ps(*q[t].add(i + d))));
                }
            }
        }
    }
    let mut scores = [_mm512_setzero_ps(); HALF];
    for (t, score) in scores.iter_mut().enumerate() {
        let even = _mm512_add_ps(_mm512_add_ps(l[0][t], l[4][t]), _mm512_add_ps(l[2][t], l[6][t]));
        let odd = _mm512_add_ps(_mm512_add_ps(l[1][t], l[5][t]), _mm512_add_ps(l[3][t], l[7][t]));
        *score = _mm512_mul_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(queries.scale));
    }
    scores
}

/// `att = 2^(att - max)` in whole registers up to position `used`. Returns the sum.
///
/// # Safety
/// `att` has them.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
unsafe fn numerators(att: *mut f32, used: usize, max: f32) -> f32 {
    let max = _mm512_set1_ps(max);
    let mut sums = _mm256_setzero_ps(); // eight lanes, as in the contract
    for start in (0..used).step_by(WIDTH) {
        // SAFETY: as the caller vouches.
        unsafe {
            let att = att.add(start);
            let x = exp2_score(_mm512_sub_ps(_mm512_loadu_ps(att), max));
            _mm512_storeu_ps(att, x);
            sums = _mm256_add_ps(sums, _mm512_castps512_ps256(x));
            sums = _mm256_add_ps(sums, _mm512_extractf32x8_ps::<1>(x));
        }
    }
    let mut lanes = [0.0; LANES];
    // SAFETY: there is room for eight numbers.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
    sum_lanes(lanes)
}

/// `out = Σ_t att[t] · values[t] / sum`, sequential over positions.
///
/// # Safety
/// Values and `out` have whole heads, and `att` is as in [`Tile`].
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
unsafe fn weigh(queries: &Queries<'_>, tile: &Tile, sums: [f32; QUERY_TILE]) {
    let columns = queries.head_size.div_ceil(WIDTH);
    for first in (0..columns).step_by(COLUMNS) {
        // SAFETY: a head has these columns; the caller vouches for the rest.
        unsafe {
            match columns - first {
                1 => weigh_columns::<1>(queries, tile, sums, first),
                2 => weigh_columns::<2>(queries, tile, sums, first),
                3 => weigh_columns::<3>(queries, tile, sums, first),
                _ => weigh_columns::<COLUMNS>(queries, tile, sums, first),
            }
        }
    }
}

/// [`weigh`] for `C` registers of dimensions from register `first` on.
///
/// # Safety
/// As [`weigh`], and a head has these columns, the last of them perhaps half.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
unsafe fn weigh_columns<const C: usize>(queries: &Queries<'_>, tile: &Tile, sums: [f32; QUERY_TILE], first: usize) {
    let head_size = queries.head_size;
    let mut masks: [__mmask16; C] = [0xffff; C];
    if (first + C) * WIDTH > head_size {
        masks[C - 1] = 0xff;
    }
    let mut weighed = [[_mm512_setzero_ps(); C]; QUERY_TILE];
    let values = queries.values.as_ptr().wrapping_add(first * WIDTH);
    let (common, used) = (tile.positions[0], tile.positions[QUERY_TILE - 1]);
    let mut add = |t: usize, all: bool| {
        let mut value = [_mm512_setzero_ps(); C];
        for (c, value) in value.iter_mut().enumerate() {
            // SAFETY: there are values for `used` positions, and these columns of a head.
            *value = unsafe { _mm512_maskz_loadu_ps(masks[c], values.add(t * head_size + c * WIDTH)) };
        }
        for (i, weighed) in weighed.iter_mut().enumerate() {
            // Values behind a query's last position do not count, even if they are not finite.
            if all || t < tile.positions[i] {
                // SAFETY: there is a weight for each position.
                let weight = _mm512_set1_ps(unsafe { *tile.att[i].add(t) });
                for (weighed, value) in weighed.iter_mut().zip(value) {
                    *weighed = _mm512_add_ps(*weighed, _mm512_mul_ps(weight, value));
                }
            }
        }
    };
    (0..common).for_each(|t| add(t, true));
    (common..used).for_each(|t| add(t, false));
    for ((out, weighed), sum) in tile.out.into_iter().zip(weighed).zip(sums) {
        let inverse = _mm512_set1_ps(1.0 / sum);
        for (c, weighed) in weighed.into_iter().enumerate() {
            // SAFETY: `out` has these columns of a head.
            unsafe {
                let out = out.add((first + c) * WIDTH);
                _mm512_mask_storeu_ps(out, masks[c], _mm512_mul_ps(weighed, inverse));
            }
        }
    }
}
