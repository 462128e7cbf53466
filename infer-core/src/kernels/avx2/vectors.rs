//! What the AVX2 kernels share: functions for tables, blocks of eight rows, fetching weights ahead,
//! and registers of eight numbers.

use core::arch::x86_64::*;

use crate::math::LANES;

/// Rows of a block.
pub(super) const ROWS: usize = 8;
/// Below this size weights are in the second-level cache, where fetching ahead costs more than it
/// gains (bytes).
pub(super) const LARGE: usize = 1 << 17;
/// Stands for "fetch nothing": a hint that is never given (see PERFORMANCE.md).
pub(super) const NOTHING: i32 = _MM_HINT_NTA;
/// How far ahead of the loads weights are fetched, in bytes. They are read in order, but the eight
/// rows look like eight streams to the hardware's prefetcher, which loses them at each block.
const AHEAD: usize = 4 * 4096;

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

/// Fetches 256 bytes, far behind this place, into a cache. A place past the end does no harm.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fetch<const CACHE: i32>(place: *const i8) {
    let ahead = if CACHE == _MM_HINT_T0 { AHEAD } else { 2 * AHEAD };
    for line in 0..4 {
        _mm_prefetch::<CACHE>(place.wrapping_add(ahead + 64 * line));
    }
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
