//! Registers of eight numbers.

use core::arch::x86_64::*;

use crate::math::LANES;

/// A mask of the first `n` of eight elements.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn tail_mask(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(x: &[f32; LANES]) -> __m256 {
    // SAFETY: eight numbers.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(x: &mut [f32; LANES], value: __m256) {
    // SAFETY: eight numbers.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), value) }
}
