//! What the AVX2 kernels share: functions for tables, fetching weights ahead, and registers of
//! eight numbers.

use core::arch::x86_64::*;

use crate::math::LANES;

/// Rows of a block.
pub(super) const ROWS: usize = 8;
/// Above this size (bytes), weights are read in stripes: smaller ones are in the second-level
/// cache, where fetching ahead costs more than it gains.
pub(super) const LARGE: usize = 1 << 17;
/// How far ahead of its loads a stripe is fetched, in bytes.
const AHEAD: usize = 512;

/// Functions for a table of kernels, each compiled for some features. They may call what is inlined
/// and unsafe for want of these. The tables that have the functions detect the features.
macro_rules! compiled {
    ($($(#[$doc:meta])* $visible:vis fn $name:ident[$features:literal]($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        $visible fn $name($($arg: $type),*) {
            #[target_feature(enable = $features)]
            fn inner($($arg: $type),*) $body
            // SAFETY: the features were detected.
            unsafe { inner($($arg),*) }
        }
    )*};
}
pub(crate) use compiled;

/// Has the cache line brought near that lies [`AHEAD`] of this place. It may be past the end.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fetch(place: *const i8) {
    _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(AHEAD));
}

/// A mask of the first `n` of eight elements.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn tail_mask(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(x: &[f32; LANES]) -> __m256 {
    // SAFETY: `x` has the eight numbers that are loaded.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(x: &mut [f32; LANES], value: __m256) {
    // SAFETY: `x` has room for the eight numbers.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), value) }
}

/// [`sum_lanes`](crate::math::sum_lanes) eight times, from registers that hold one lane each.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_lanes(l: [__m256; LANES]) -> __m256 {
    let t = [0, 1, 2, 3].map(|i| _mm256_add_ps(l[i], l[i + 4]));
    _mm256_add_ps(_mm256_add_ps(t[0], t[2]), _mm256_add_ps(t[1], t[3]))
}
