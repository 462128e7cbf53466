//! Products with many tokens for AVX-512: sixteen rows in a register. VNNI multiplies bytes;
//! without it int8 weights are widened, as for AVX2.

use core::arch::x86_64::*;

use crate::kernels::avx2::batch::{quantize_unsigned, quantize_wide};
use crate::kernels::avx2::vectors::compiled;
use crate::kernels::batch::{Offsets, Registers, f32, instructions, q8};
use crate::kernels::table::Batch;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

/// Tokens of a tile: sixteen sums, half of the registers.
const TOKENS: usize = 8;

pub(super) const AVX512: Batch = Batch {
    tokens: TOKENS,
    rows: 32,
    matmul_f32,
    matmul_q8: matmul_q8_wide,
    quantize: quantize_wide,
    attend: Some(super::attention::attend),
};
pub(super) const VNNI: Batch = Batch { matmul_q8: matmul_q8_vnni, quantize: quantize_unsigned, ..AVX512 };

compiled! {
    fn matmul_f32["avx512f,avx512bw,avx512dq,avx512vl"](
        w: &[f32],
        cols: usize,
        x: &[f32],
        packed: &mut [f32],
        out: &mut Panel<'_>,
    ) {
        // SAFETY: this function is compiled for AVX-512.
        unsafe { f32::matmul_f32::<Avx512, TOKENS>(w, cols, x, packed, out) }
    }

    fn matmul_q8_wide["avx512f,avx512bw,avx512dq,avx512vl"](
        w: &Q8Matrix<'_>,
        x: &[i8],
        xs: &[f32],
        packed: &mut [f32],
        out: &mut Panel<'_>,
    ) {
        // SAFETY: as above.
        unsafe { q8::matmul_q8::<Wide, TOKENS>(w, x, xs, packed, out) }
    }

    fn matmul_q8_vnni["avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"](
        w: &Q8Matrix<'_>,
        x: &[i8],
        xs: &[f32],
        packed: &mut [f32],
        out: &mut Panel<'_>,
    ) {
        // SAFETY: this function is compiled for AVX-512 with VNNI.
        unsafe { q8::matmul_q8::<Vnni, TOKENS>(w, x, xs, packed, out) }
    }
}

/// Sixteen numbers in a register.
struct Avx512;

impl Registers for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;
    const ROWS: usize = 16;

    instructions! {
        load(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
        load_i32(from: *const f32) -> __m512i = _mm512_loadu_si512(from.cast());
        store(to: *mut f32, x: __m512) = _mm512_storeu_ps(to, x);
        store_i32(to: *mut f32, x: __m512i) = _mm512_storeu_si512(to.cast(), x);
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        splat_i32(x: i32) -> __m512i = _mm512_set1_epi32(x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        negate(x: __m512i) -> __m512i = _mm512_sub_epi32(_mm512_setzero_si512(), x);
        to_f32(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        transpose(from: *const u8, offsets: &Offsets) -> [__m512i; 4] = transpose_4x4([
            four(from, offsets, 0),
            four(from, offsets, 1),
            four(from, offsets, 2),
            four(from, offsets, 3),
        ]);
    }
}

/// Integers of 16 bits.
struct Wide;

impl q8::Int8 for Wide {
    type R = Avx512;
    const COLUMNS: usize = 2;
    const OFFSET: i32 = 0;

    instructions! {
        dot(sums: __m512i, w: __m512i, x: __m512i) -> __m512i = _mm512_add_epi32(sums, _mm512_madd_epi16(w, x));
        transpose(from: *const u8, offsets: &Offsets) -> [__m512i; 4] = transpose_4x4([
            four_widened(from, offsets, 0),
            four_widened(from, offsets, 1),
            four_widened(from, offsets, 2),
            four_widened(from, offsets, 3),
        ]);
    }
}

/// Bytes, of which `dpbusd` takes those of x as unsigned.
struct Vnni;

impl q8::Int8 for Vnni {
    type R = Avx512;
    const COLUMNS: usize = 4;
    const OFFSET: i32 = i32::from_ne_bytes([128; 4]);

    instructions! {
        dot(sums: __m512i, w: __m512i, x: __m512i) -> __m512i = _mm512_dpbusd_epi32(sums, x, w);
        transpose(from: *const u8, offsets: &Offsets) -> [__m512i; 4] = Avx512::transpose(from, offsets);
    }
}

/// 16 bytes of the rows `r`, `r + 4`, `r + 8` and `r + 12`.
///
/// # Safety
/// They are there, and the machine has AVX-512.
#[inline(always)]
unsafe fn four(from: *const u8, offsets: &Offsets, r: usize) -> __m512i {
    // SAFETY: as the caller vouches.
    unsafe {
        let rows = _mm512_castsi128_si512(_mm_loadu_si128(from.add(offsets[r]).cast()));
        let rows = _mm512_inserti32x4::<1>(rows, _mm_loadu_si128(from.add(offsets[r + 4]).cast()));
        let rows = _mm512_inserti32x4::<2>(rows, _mm_loadu_si128(from.add(offsets[r + 8]).cast()));
        _mm512_inserti32x4::<3>(rows, _mm_loadu_si128(from.add(offsets[r + 12]).cast()))
    }
}

/// 8 bytes of the same rows, widened.
///
/// # Safety
/// As [`four`].
#[inline(always)]
unsafe fn four_widened(from: *const u8, offsets: &Offsets, r: usize) -> __m512i {
    // SAFETY: as the caller vouches.
    unsafe {
        let a = _mm_loadl_epi64(from.add(offsets[r]).cast());
        let b = _mm_loadl_epi64(from.add(offsets[r + 4]).cast());
        let c = _mm_loadl_epi64(from.add(offsets[r + 8]).cast());
        let d = _mm_loadl_epi64(from.add(offsets[r + 12]).cast());
        _mm512_cvtepi8_epi16(_mm256_set_m128i(_mm_unpacklo_epi64(c, d), _mm_unpacklo_epi64(a, b)))
    }
}

/// Transposes four times four numbers in each quarter.
///
/// # Safety
/// The machine has AVX-512.
#[inline(always)]
unsafe fn transpose_4x4([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: as the caller vouches.
    unsafe {
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
