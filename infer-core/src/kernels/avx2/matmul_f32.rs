//! The f32 matrix product for AVX2.

use core::arch::x86_64::*;

use super::stripes::{Block, in_stripes};
use super::vectors::{LARGE, ROWS, fetch, tail_mask};
use crate::kernels::blocks;
use crate::math::dot;
use crate::panel::Panel;

pub(super) fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    // SAFETY: AVX2 was detected (see `TABLE`).
    unsafe { matmul_f32_avx2(w, cols, x, out) }
}

#[target_feature(enable = "avx2")]
fn matmul_f32_avx2(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    if size_of_val(w) <= LARGE || cols == 0 {
        return blocks::matmul_f32(w, cols, x, out, |_, w, x, out| {
            // SAFETY: the walker gives ROWS whole rows of weights, each as long as x.
            unsafe { dot_rows::<false>(w.as_ptr(), cols, x, out) }
        });
    }
    let n_tokens = x.len() / cols;
    let x = |token| &x[token * cols..][..cols];
    in_stripes(
        w.len() / cols,
        n_tokens,
        out,
        |Block { token, first, apart }, out| {
            let w = w[first * cols..].as_ptr();
            // SAFETY: the walker gives rows that exist, ROWS of them from `first` on, so far apart.
            unsafe {
                if token == 0 {
                    dot_rows::<true>(w, apart * cols, x(token), out)
                } else {
                    dot_rows::<false>(w, apart * cols, x(token), out)
                }
            }
        },
        |token, row| dot(&w[row * cols..][..cols], x(token)),
    );
}

/// [`dot`] of eight rows with x.
///
/// # Safety
/// `w` points to eight rows as long as x, which begin `stride` numbers apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_rows<const FETCH: bool>(w: *const f32, stride: usize, x: &[f32], out: &mut [f32; ROWS]) {
    let mut lanes = [_mm256_setzero_ps(); ROWS];
    let (chunks, tail) = x.as_chunks::<8>();
    for (i, x) in chunks.iter().enumerate() {
        // SAFETY: `x` is a chunk of eight numbers, number i; each row r has the same chunk at
        // r · stride + 8i.
        unsafe {
            let x = _mm256_loadu_ps(x.as_ptr());
            for (r, lanes) in lanes.iter_mut().enumerate() {
                let w = w.add(r * stride + 8 * i);
                if FETCH && i % 2 == 0 {
                    fetch(w.cast());
                }
                *lanes = _mm256_add_ps(*lanes, _mm256_mul_ps(_mm256_loadu_ps(w), x));
            }
        }
    }
    if !tail.is_empty() {
        // Elements that are not loaded are 0 in both, and leave their lanes alone: a lane is never
        // -0, having begun at 0.
        let mask = tail_mask(tail.len());
        // SAFETY: the mask loads the tail of `x` only, and the tail of each row.
        unsafe {
            let x = _mm256_maskload_ps(tail.as_ptr(), mask);
            for (r, lanes) in lanes.iter_mut().enumerate() {
                let w = _mm256_maskload_ps(w.add(r * stride + 8 * chunks.len()), mask);
                *lanes = _mm256_add_ps(*lanes, _mm256_mul_ps(w, x));
            }
        }
    }
    // SAFETY: `out` has room for eight numbers.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum_lanes(lanes)) }
}

/// [`sum_lanes`](crate::math::sum_lanes) of eight sums, in their order.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_lanes(l: [__m256; 8]) -> __m256 {
    // t_i = l_i + l_{i+4} of rows r and r + 4 side by side: [t0 t1 t2 t3 of row r | of row r + 4]
    let halves = |r: usize| {
        let low = _mm256_permute2f128_ps::<0x20>(l[r], l[r + 4]);
        let high = _mm256_permute2f128_ps::<0x31>(l[r], l[r + 4]);
        _mm256_add_ps(low, high)
    };
    let (a, b, c, d) = (halves(0), halves(1), halves(2), halves(3));
    // Transposed within each half: t0 of rows 0 to 3 | 4 to 7, and so on.
    let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); // t0 t0 t1 t1, t2 t2 t3 t3
    let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let t0 = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
    let t1 = _mm256_shuffle_ps::<0xee>(ab_low, cd_low);
    let t2 = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
    let t3 = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
    _mm256_add_ps(_mm256_add_ps(t0, t2), _mm256_add_ps(t1, t3))
}
