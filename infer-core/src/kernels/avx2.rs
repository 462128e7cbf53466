//! AVX2 kernels, and the int8 product again for AVX-VNNI.
//!
//! Eight rows share each load of x. Their eight sums of eight lanes are transposed at the end, so
//! that lanes are added for eight rows at once. Functions without intrinsics are the scalar ones,
//! compiled for AVX2: eight lanes are one register, and the compiler finds that by itself.
//!
//! Tried and rejected: fused multiply-add (it would break the contract; it gained nothing from
//! memory), and rows of 16 lanes (AVX-512), which is another order of summation.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use self::vectors::tail_mask;
use super::scalar;
use super::table::{HeadsQ8, Kernels};
use crate::math;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;
use crate::quant;

pub(super) mod attention;
mod vectors;

/// Rows of a block.
const ROWS: usize = 8;
/// Bytes of a register.
const BYTES: usize = 32;
/// How far ahead of the loads weights are fetched, in bytes. They are read in order, but the eight
/// rows look like eight streams to the hardware's prefetcher, which loses them at each block.
const AHEAD: usize = 4 * 4096;
/// A block of rows above this size (bytes) leaves no room for what is fetched ahead in the
/// first-level cache, so that it goes to the second: twice as far ahead.
const LARGE_BLOCK: usize = 1 << 14;
/// Stands for no cache to fetch to: a hint that is never given (see PERFORMANCE.md).
const NOTHING: i32 = _MM_HINT_NTA;
/// Below this size weights are in the second-level cache, where fetching ahead costs more than it
/// gains (bytes).
const LARGE: usize = 1 << 17;

/// The kernels, if this machine has AVX2.
pub(super) fn avx2() -> Option<Kernels> {
    std::is_x86_feature_detected!("avx2").then_some(Kernels { name: "avx2", ..TABLE })
}

/// The kernels, if this machine has AVX2 and AVX-VNNI.
pub(super) fn avx_vnni() -> Option<Kernels> {
    let kernels = Kernels { name: "avx-vnni", matmul_q8: matmul_q8_vnni, ..TABLE };
    (std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("avxvnni")).then_some(kernels)
}

const TABLE: Kernels =
    Kernels { name: "", matmul_f32, matmul_q8, quantize, attend: attention::attend, attend_q8, rmsnorm, swiglu };

// Every function below stands in a table that exists only on a machine with the features that it
// needs.

fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    #[target_feature(enable = "avx2")]
    fn avx2(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
        quant::quantize(x, group_size, q, s);
    }
    // SAFETY: AVX2 was detected.
    unsafe { avx2(x, group_size, q, s) }
}

fn attend_q8(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]) {
    #[target_feature(enable = "avx2")]
    fn avx2(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]) {
        scalar::attend_q8(heads, att, out);
    }
    // SAFETY: AVX2 was detected.
    unsafe { avx2(heads, att, out) }
}

fn rmsnorm(out: &mut [f32], x: &[f32], weight: &[f32]) {
    #[target_feature(enable = "avx2")]
    fn avx2(out: &mut [f32], x: &[f32], weight: &[f32]) {
        math::rmsnorm(out, x, weight);
    }
    // SAFETY: AVX2 was detected.
    unsafe { avx2(out, x, weight) }
}

fn swiglu(hb: &mut [f32], hb2: &[f32]) {
    #[target_feature(enable = "avx2")]
    fn avx2(hb: &mut [f32], hb2: &[f32]) {
        math::swiglu(hb, hb2);
    }
    // SAFETY: AVX2 was detected.
    unsafe { avx2(hb, hb2) }
}

fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    // SAFETY: AVX2 was detected.
    unsafe { matmul_f32_avx2(w, cols, x, out) }
}

#[target_feature(enable = "avx2")]
fn matmul_f32_avx2(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    if size_of_val(w) < LARGE {
        matmul_f32_ahead::<NOTHING>(w, cols, x, out)
    } else if ROWS * cols * size_of::<f32>() <= LARGE_BLOCK {
        matmul_f32_ahead::<_MM_HINT_T0>(w, cols, x, out)
    } else {
        matmul_f32_ahead::<_MM_HINT_T1>(w, cols, x, out)
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn matmul_f32_ahead<const FETCH: i32>(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    let block = (ROWS * cols).max(1);
    for (i, w) in w.chunks(block).enumerate() {
        for (b, x) in x.chunks_exact(cols.max(1)).enumerate() {
            let Some(out) = out.row(b).get_mut(i * ROWS..) else { return };
            match out.first_chunk_mut::<ROWS>() {
                // SAFETY: w holds ROWS rows of cols, and x one.
                Some(out) if w.len() == block => unsafe {
                    if b == 0 { dot_rows::<FETCH>(w.as_ptr(), x, out) } else { dot_rows::<NOTHING>(w.as_ptr(), x, out) }
                },
                _ => w.chunks_exact(cols.max(1)).zip(out).for_each(|(w, out)| *out = math::dot(w, x)),
            }
        }
    }
}

/// [`math::dot`] of eight rows with x.
///
/// # Safety
/// `w` points to `8 · x.len()` numbers.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_rows<const FETCH: i32>(w: *const f32, x: &[f32], out: &mut [f32; ROWS]) {
    let cols = x.len();
    let mut lanes = [_mm256_setzero_ps(); ROWS];
    let (chunks, tail) = x.as_chunks::<8>();
    for (i, x) in chunks.iter().enumerate() {
        // SAFETY: eight numbers of x, and eight of each row at the same place.
        unsafe {
            let x = _mm256_loadu_ps(x.as_ptr());
            if FETCH != NOTHING {
                fetch::<FETCH>(w.wrapping_add(ROWS * 8 * i).cast());
            }
            for (r, lanes) in lanes.iter_mut().enumerate() {
                let w = _mm256_loadu_ps(w.add(r * cols + 8 * i));
                *lanes = _mm256_add_ps(*lanes, _mm256_mul_ps(w, x));
            }
        }
    }
    if !tail.is_empty() {
        // Elements that are not loaded are 0 in both, and leave their lanes alone: a lane is never
        // -0, having begun at 0.
        let mask = tail_mask(tail.len());
        // SAFETY: the mask keeps to the tail of x, and of each row.
        unsafe {
            let x = _mm256_maskload_ps(tail.as_ptr(), mask);
            for (r, lanes) in lanes.iter_mut().enumerate() {
                let w = _mm256_maskload_ps(w.add((r + 1) * cols - tail.len()), mask);
                *lanes = _mm256_add_ps(*lanes, _mm256_mul_ps(w, x));
            }
        }
    }
    // SAFETY: out has eight numbers.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum_lanes(lanes)) }
}

/// Fetches 256 bytes, far behind this place, into a cache; harmless past the end.
#[inline]
#[target_feature(enable = "avx2")]
fn fetch<const CACHE: i32>(place: *const i8) {
    let ahead = if CACHE == _MM_HINT_T0 { AHEAD } else { 2 * AHEAD };
    for line in 0..4 {
        _mm_prefetch::<CACHE>(place.wrapping_add(ahead + 64 * line));
    }
}

/// [`math::sum_lanes`] of eight sums, in their order.
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

/// Sums of the eight elements of each of eight vectors, in their order.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_i32(v: [__m256i; 8]) -> __m256i {
    let pairs = |r: usize| _mm256_hadd_epi32(v[r], v[r + 1]);
    let low = _mm256_hadd_epi32(pairs(0), pairs(2)); // rows 0 to 3, first halves | second halves
    let high = _mm256_hadd_epi32(pairs(4), pairs(6)); // rows 4 to 7
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high))
}

/// An int8 product, whose `$products` adds the products of 32 weights and activations to eight
/// sums.
macro_rules! matmul_q8 {
    ($name:ident, $inner:ident, $block:ident, $features:literal, $start:ident, $products:ident) => {
        fn $name(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
            // SAFETY: the features were detected.
            unsafe {
                match w.group_size {
                    64 => $inner::<64>(w, x, xs, out), // the usual sizes as constants, so that loops unroll
                    32 => $inner::<32>(w, x, xs, out),
                    _ => $inner::<0>(w, x, xs, out),
                }
            }
        }

        #[target_feature(enable = $features)]
        fn $inner<const GROUP: usize>(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
            let (cols, group_size) = (w.cols, if GROUP == 0 { w.group_size } else { GROUP });
            let groups = cols.checked_div(group_size).unwrap_or(0);
            // Small groups gain little, and rows left over are few.
            if group_size % BYTES != 0 || groups == 0 {
                return scalar::matmul_q8(w, x, xs, out);
            }
            let blocks = w.q.chunks(ROWS * cols).zip(w.s.chunks(ROWS * groups));
            for (i, (q, s)) in blocks.enumerate() {
                for (b, (x, xs)) in x.chunks_exact(cols).zip(xs.chunks_exact(groups)).enumerate() {
                    let Some(out) = out.row(b).get_mut(i * ROWS..) else { return };
                    match out.first_chunk_mut::<ROWS>() {
                        Some(out) if q.len() == ROWS * cols && s.len() == ROWS * groups => {
                            // SAFETY: eight rows of cols weights and of groups scales, one row of
                            // each for x.
                            unsafe {
                                if size_of_val(w.q) > LARGE / 4 && b == 0 {
                                    $block::<true>(q.as_ptr(), s.as_ptr(), x, xs, group_size, out)
                                } else {
                                    $block::<false>(q.as_ptr(), s.as_ptr(), x, xs, group_size, out)
                                }
                            }
                        }
                        _ => {
                            let rows = q.chunks_exact(cols).zip(s.chunks_exact(groups)).zip(out);
                            rows.for_each(|((q, s), out)| *out = scalar::dot_q8(q, s, x, xs, group_size));
                        }
                    }
                }
            }
        }

        /// # Safety
        /// `q` points to `8 · x.len()` weights, `s` to `8 · xs.len()` scales, and x has `xs.len()`
        /// groups, whose size is a multiple of 32.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $block<const FETCH: bool>(
            q: *const i8,
            s: *const f32,
            x: &[i8],
            xs: &[f32],
            group_size: usize,
            out: &mut [f32; ROWS],
        ) {
            let (cols, groups) = (x.len(), xs.len());
            let mut lanes = [_mm256_setzero_ps(); 8]; // [group mod 8], each of eight rows
            let row_of_scales =
                _mm256_mullo_epi32(_mm256_set1_epi32(groups as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            for (g, (x, xs)) in x.chunks_exact(group_size).zip(xs).enumerate() {
                let mut sums = [$start(x); ROWS];
                for (i, x) in x.chunks_exact(BYTES).enumerate() {
                    // SAFETY: 32 bytes of x, and 32 of each row at the same place.
                    unsafe {
                        if FETCH {
                            fetch::<_MM_HINT_T0>(q.wrapping_add(ROWS * (g * group_size + i * BYTES)));
                        }
                        let x = _mm256_loadu_si256(x.as_ptr().cast());
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let w = _mm256_loadu_si256(q.add(r * cols + g * group_size + i * BYTES).cast());
                            *sums = $products(*sums, w, x);
                        }
                    }
                }
                // SAFETY: element r · groups + g is the scale of group g of row r, below 8 ·
                // groups.
                let ws = unsafe {
                    if groups == 1 { _mm256_loadu_ps(s) } else { _mm256_i32gather_ps::<4>(s.add(g), row_of_scales) }
                };
                let sums = _mm256_cvtepi32_ps(sum_i32(sums));
                let contribution = _mm256_mul_ps(_mm256_mul_ps(sums, ws), _mm256_set1_ps(*xs));
                if groups == 1 {
                    // All other lanes are 0, and adding them changes nothing but -0 to 0.
                    let sum = _mm256_add_ps(contribution, _mm256_setzero_ps());
                    // SAFETY: out has eight numbers.
                    return unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
                }
                lanes[g % 8] = _mm256_add_ps(lanes[g % 8], contribution);
            }
            let t = [0, 1, 2, 3].map(|i| _mm256_add_ps(lanes[i], lanes[i + 4]));
            let sum = _mm256_add_ps(_mm256_add_ps(t[0], t[2]), _mm256_add_ps(t[1], t[3]));
            // SAFETY: out has eight numbers.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) }
        }
    };
}

matmul_q8!(matmul_q8, matmul_q8_avx2, dot_rows_q8_avx2, "avx2", start_avx2, products_avx2);
matmul_q8!(matmul_q8_vnni, matmul_q8_avx_vnni, dot_rows_q8_avx_vnni, "avx2,avxvnni", start_vnni, products_vnni);

#[inline]
#[target_feature(enable = "avx2")]
fn start_avx2(_x: &[i8]) -> __m256i {
    _mm256_setzero_si256()
}

/// Exact although `maddubs` adds two products in 16 bits: |x| <= 127 and |w| <= 128 give at most 2
/// · 127 · 128 = 32,512. The unsigned factor must be |w|, since -128 has a magnitude as a byte, but
/// no negative.
#[inline]
#[target_feature(enable = "avx2")]
fn products_avx2(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// VNNI multiplies unsigned with signed bytes: w + 128 (its bits with the sign flipped) is
/// unsigned, and the sums begin at -128 · Σ x to make up for it.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn start_vnni(x: &[i8]) -> __m256i {
    let mut sums = _mm256_setzero_si256();
    for x in x.chunks_exact(BYTES) {
        // SAFETY: 32 bytes.
        let x = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        sums = _mm256_dpbusd_avx_epi32(sums, _mm256_set1_epi8(-128), x);
    }
    _mm256_sub_epi32(_mm256_setzero_si256(), sums)
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn products_vnni(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sums, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x)
}
