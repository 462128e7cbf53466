//! The int8 matrix product for AVX2, AVX-VNNI, and AVX-512 with VNNI.
//!
//! All are one generic function, and instruction sets differ in [`Products`]. A function that is
//! compiled for some features cannot be generic over them, so the generic ones are compiled for
//! none and inlined into one that has them. They hold no closures, which would not be inlined, and
//! then each intrinsic would be a call.

use core::arch::x86_64::*;

use super::stripes::{Block, in_stripes};
use super::vectors::{self, ROWS, add_lanes, fetch};
use crate::kernels::blocks_q8::{self, Q8Rows};
use crate::kernels::scalar;
use crate::math::dot_q8;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

/// Bytes of a register.
const BYTES: usize = 32;
/// Above this size (bytes), weights are read in stripes: as many numbers as of f32.
const LARGE: usize = vectors::LARGE / 4;

/// A product by the instructions of `$products`, compiled for `$features`. It is in tables only
/// that detect these.
macro_rules! product {
    ($name:ident, $features:literal, $products:ident) => {
        pub(crate) fn $name(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
            #[target_feature(enable = $features)]
            fn compiled<const GROUP: usize>(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
                let w = &Q8Matrix { group_size: if GROUP == 0 { w.group_size } else { GROUP }, ..*w };
                if size_of_val(w.q) <= LARGE || !fits_stripes(w) {
                    // SAFETY: the closure has the features of this function, which are all that
                    // the products need. The walker gives ROWS whole rows, each as long as x and
                    // of as many groups as x; their size is a multiple of 32.
                    return blocks_q8::matmul_q8(w, x, xs, out, |_, rows, out| unsafe {
                        dot_rows::<$products, false>(rows, 1, out)
                    });
                }
                let (cols, groups) = (w.cols, w.cols / w.group_size);
                let rows = |token: usize, first: usize| Q8Rows {
                    q: &w.q[first * cols..],
                    s: &w.s[first * groups..],
                    x: &x[token * cols..][..cols],
                    xs: &xs[token * groups..][..groups],
                    group_size: w.group_size,
                };
                in_stripes(
                    (w.q.len() / cols).min(w.s.len() / groups),
                    (x.len() / cols).min(xs.len() / groups),
                    out,
                    // SAFETY: as above; the walker gives rows that exist, so far apart, and an i32
                    // counts all scales.
                    |Block { token, first, apart }, out| unsafe {
                        if token == 0 {
                            dot_rows::<$products, true>(rows(token, first), apart, out)
                        } else {
                            dot_rows::<$products, false>(rows(token, first), apart, out)
                        }
                    },
                    |token, row| {
                        let Q8Rows { q, s, x, xs, group_size } = rows(token, row);
                        dot_q8(q, s, x, xs, group_size)
                    },
                );
            }
            // SAFETY: the features were detected.
            unsafe {
                match w.group_size {
                    64 => compiled::<64>(w, x, xs, out),
                    32 => compiled::<32>(w, x, xs, out),
                    group_size if group_size.is_multiple_of(BYTES) => compiled::<0>(w, x, xs, out),
                    _ => scalar::matmul_q8(w, x, xs, out), // small groups would gain little
                }
            }
        }
    };
}

product!(matmul_q8, "avx2", Maddubs);
product!(matmul_q8_vnni, "avx2,avxvnni", AvxVnni);
product!(matmul_q8_avx512_vnni, "avx2,avx512vl,avx512vnni", Vnni);

/// How instructions multiply bytes and add up the products.
trait Products {
    /// The eight sums to begin with, for a group of x.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn start(x: &[i8]) -> __m256i;

    /// Adds the products of 32 weights and activations to eight sums.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn add(sums: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// `maddubs` of AVX2.
struct Maddubs;

impl Products for Maddubs {
    #[inline(always)]
    unsafe fn start(_x: &[i8]) -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    /// Exact although `maddubs` adds two products in 16 bits: |x| <= 127 and |w| <= 128 give at
    /// most 2 · 127 · 128 = 32,512. The unsigned factor must be |w|, since -128 has a magnitude as
    /// a byte, but no negative.
    #[inline(always)]
    unsafe fn add(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

/// `dpbusd`, which AVX-VNNI and AVX-512 with VNNI have in encodings of their own. It multiplies
/// unsigned with signed bytes: w + 128 (its bits with the sign flipped) is unsigned, and the sums
/// begin at -128 · Σ x to make up for it.
macro_rules! dpbusd {
    ($name:ident, $instruction:ident) => {
        struct $name;

        impl Products for $name {
            #[inline(always)]
            unsafe fn start(x: &[i8]) -> __m256i {
                // SAFETY: the caller vouches for the instructions; a chunk has the 32 bytes that
                // are loaded.
                unsafe {
                    let mut sums = _mm256_setzero_si256();
                    for x in x.chunks_exact(BYTES) {
                        let x = _mm256_loadu_si256(x.as_ptr().cast());
                        sums = $instruction(sums, _mm256_set1_epi8(-128), x);
                    }
                    _mm256_sub_epi32(_mm256_setzero_si256(), sums)
                }
            }

            #[inline(always)]
            unsafe fn add(sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $instruction(sums, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x) }
            }
        }
    };
}

dpbusd!(AvxVnni, _mm256_dpbusd_avx_epi32);
dpbusd!(Vnni, _mm256_dpbusd_epi32);

/// Whether rows can be walked in stripes: they have groups, whose number fits a gather of scales.
fn fits_stripes(w: &Q8Matrix<'_>) -> bool {
    w.group_size > 0 && w.cols >= w.group_size && i32::try_from(w.s.len()).is_ok()
}

/// [`dot_q8`] of eight rows, which begin `apart` rows apart, with x.
///
/// # Safety
/// The machine has the instructions of `P`, and the caller is compiled for them. There are seven
/// times `apart` rows and one more, of `x.len()` weights and `xs.len()` scales each, an i32 can
/// count all scales, and x has `xs.len()` groups of `group_size`, a multiple of 32.
#[inline(always)]
unsafe fn dot_rows<P: Products, const FETCH: bool>(rows: Q8Rows<'_>, apart: usize, out: &mut [f32; ROWS]) {
    let Q8Rows { x, xs, group_size, .. } = rows;
    let (q, s) = (rows.q.as_ptr(), rows.s.as_ptr());
    let (stride, groups) = (apart * x.len(), xs.len());
    // SAFETY: the caller vouches for the instructions. Loads of x and of weights stay in a chunk of
    // 32 columns of x, and in the same columns of the eight rows. Element r · apart · groups + g is
    // the scale of group g of row r < 8. `out` has the eight numbers that are stored.
    unsafe {
        let mut lanes = [_mm256_setzero_ps(); 8]; // [group mod 8], each of eight rows
        let row_of_scales =
            _mm256_mullo_epi32(_mm256_set1_epi32((apart * groups) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        for (g, (x, xs)) in x.chunks_exact(group_size).zip(xs).enumerate() {
            let mut sums = [P::start(x); ROWS];
            for (i, x) in x.chunks_exact(BYTES).enumerate() {
                let column = g * group_size + i * BYTES;
                let x = _mm256_loadu_si256(x.as_ptr().cast());
                for (r, sums) in sums.iter_mut().enumerate() {
                    let w = q.add(r * stride + column);
                    if FETCH && column.is_multiple_of(2 * BYTES) {
                        fetch(w);
                    }
                    *sums = P::add(*sums, _mm256_loadu_si256(w.cast()), x);
                }
            }
            let sums = _mm256_cvtepi32_ps(sum_i32(sums));
            let ws = if apart * groups == 1 {
                _mm256_loadu_ps(s)
            } else {
                _mm256_i32gather_ps::<4>(s.add(g), row_of_scales)
            };
            let contribution = _mm256_mul_ps(_mm256_mul_ps(sums, ws), _mm256_set1_ps(*xs));
            if groups == 1 {
                // All other lanes are 0, and adding them changes nothing but -0 to 0.
                return _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(contribution, _mm256_setzero_ps()));
            }
            lanes[g % 8] = _mm256_add_ps(lanes[g % 8], contribution);
        }
        _mm256_storeu_ps(out.as_mut_ptr(), add_lanes(lanes))
    }
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
