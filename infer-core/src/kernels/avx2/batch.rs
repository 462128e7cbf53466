//! Products with many tokens for AVX2: eight rows in a register. int8 weights are widened when they
//! are packed, since a product of two bytes with a sum in 16 bits has no room for another, and
//! AVX-VNNI multiplies bytes.

use core::arch::x86_64::*;

use super::vectors::compiled;
use crate::kernels::batch::{Offsets, Registers, f32, instructions, q8};
use crate::kernels::table::Batch;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;
use crate::quant;

/// Tokens of a tile: eight sums, half of the registers.
const TOKENS: usize = 4;

pub(super) const AVX2: Batch =
    Batch { tokens: TOKENS, rows: 16, matmul_f32, matmul_q8: matmul_q8_wide, quantize: quantize_wide, attend: None };
pub(super) const AVX_VNNI: Batch = Batch { matmul_q8: matmul_q8_vnni, quantize: quantize_unsigned, ..AVX2 };

compiled! {
    fn matmul_f32["avx2"](w: &[f32], cols: usize, x: &[f32], packed: &mut [f32], out: &mut Panel<'_>) {
        // SAFETY: this function is compiled for AVX2.
        unsafe { f32::matmul_f32::<Avx2, TOKENS>(w, cols, x, packed, out) }
    }

    fn matmul_q8_wide["avx2"](w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], packed: &mut [f32], out: &mut Panel<'_>) {
        // SAFETY: as above.
        unsafe { q8::matmul_q8::<Wide, TOKENS>(w, x, xs, packed, out) }
    }

    fn matmul_q8_vnni["avx2,avxvnni"](
        w: &Q8Matrix<'_>,
        x: &[i8],
        xs: &[f32],
        packed: &mut [f32],
        out: &mut Panel<'_>,
    ) {
        // SAFETY: this function is compiled for AVX2 and AVX-VNNI.
        unsafe { q8::matmul_q8::<Vnni, TOKENS>(w, x, xs, packed, out) }
    }

    /// Activations as integers of 16 bits.
    pub(crate) fn quantize_wide["avx2"](x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
        quant::quantize(x, group_size, q, s);
        // From the end on, as each integer takes the place of two.
        for i in (0..x.len().min(q.len() / 2)).rev() {
            let [low, high] = i16::from(q[i]).to_le_bytes();
            (q[2 * i], q[2 * i + 1]) = (low as i8, high as i8);
        }
    }

    /// Activations as unsigned bytes, which are 128 too large.
    pub(crate) fn quantize_unsigned["avx2"](x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
        quant::quantize(x, group_size, q, s);
        q.iter_mut().take(x.len()).for_each(|q| *q ^= -128);
    }
}

/// Eight numbers in a register.
struct Avx2;

impl Registers for Avx2 {
    type F32 = __m256;
    type I32 = __m256i;
    const ROWS: usize = 8;

    instructions! {
        load(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
        load_i32(from: *const f32) -> __m256i = _mm256_loadu_si256(from.cast());
        store(to: *mut f32, x: __m256) = _mm256_storeu_ps(to, x);
        store_i32(to: *mut f32, x: __m256i) = _mm256_storeu_si256(to.cast(), x);
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        splat_i32(x: i32) -> __m256i = _mm256_set1_epi32(x);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        negate(x: __m256i) -> __m256i = _mm256_sub_epi32(_mm256_setzero_si256(), x);
        to_f32(x: __m256i) -> __m256 = _mm256_cvtepi32_ps(x);
        transpose(from: *const u8, offsets: &Offsets) -> [__m256i; 4] =
            transpose_4x4([two(from, offsets, 0), two(from, offsets, 1), two(from, offsets, 2), two(from, offsets, 3)]);
    }
}

/// Integers of 16 bits.
struct Wide;

impl q8::Int8 for Wide {
    type R = Avx2;
    const COLUMNS: usize = 2;
    const OFFSET: i32 = 0;

    instructions! {
        dot(sums: __m256i, w: __m256i, x: __m256i) -> __m256i = _mm256_add_epi32(sums, _mm256_madd_epi16(w, x));
        transpose(from: *const u8, offsets: &Offsets) -> [__m256i; 4] = transpose_4x4([
            two_widened(from, offsets, 0),
            two_widened(from, offsets, 1),
            two_widened(from, offsets, 2),
            two_widened(from, offsets, 3),
        ]);
    }
}

/// Bytes, of which `dpbusd` takes those of x as unsigned.
struct Vnni;

impl q8::Int8 for Vnni {
    type R = Avx2;
    const COLUMNS: usize = 4;
    const OFFSET: i32 = i32::from_ne_bytes([128; 4]);

    instructions! {
        dot(sums: __m256i, w: __m256i, x: __m256i) -> __m256i = _mm256_dpbusd_avx_epi32(sums, x, w);
        transpose(from: *const u8, offsets: &Offsets) -> [__m256i; 4] = Avx2::transpose(from, offsets);
    }
}

/// 16 bytes of the rows `r` and `r + 4`.
///
/// # Safety
/// They are there, and the machine has AVX2.
#[inline(always)]
unsafe fn two(from: *const u8, offsets: &Offsets, r: usize) -> __m256i {
    // SAFETY: as the caller vouches.
    unsafe { _mm256_loadu2_m128i(from.add(offsets[r + 4]).cast(), from.add(offsets[r]).cast()) }
}

/// 8 bytes of the rows `r` and `r + 4`, widened.
///
/// # Safety
/// As [`two`].
#[inline(always)]
unsafe fn two_widened(from: *const u8, offsets: &Offsets, r: usize) -> __m256i {
    // SAFETY: as the caller vouches.
    unsafe {
        let low = _mm_loadl_epi64(from.add(offsets[r]).cast());
        let high = _mm_loadl_epi64(from.add(offsets[r + 4]).cast());
        _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(low, high))
    }
}

/// Transposes four times four numbers in each half.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn transpose_4x4([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: as the caller vouches.
    unsafe {
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
