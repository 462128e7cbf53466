//! Products with many tokens for NEON. A register of `batch.rs` is a pair of NEON's here, so that a
//! block has four of them: 16 rows, for which each number of x is loaded once.
//!
//! Weights and activations are bytes. The sums of a group need no offset, as all multiplications
//! are of signed numbers.

use core::arch::aarch64::*;

use super::dot::{sdot, widening_dot};
use crate::kernels::batch::{Offsets, Registers, f32, instructions, q8};
use crate::kernels::table::Batch;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;
use crate::quant::quantize;

/// Tokens of a tile: 16 of the 32 registers hold sums, and four the weights. With six tokens the
/// compiler spills registers, but for `sdot`, where they save 7% of the instructions.
const TOKENS: usize = 4;

pub(super) const NEON: Batch =
    Batch { tokens: TOKENS, rows: 16, matmul_f32, matmul_q8: matmul_q8_wide, quantize, attend: None };
pub(super) const DOTPROD: Batch = Batch { matmul_q8: matmul_q8_dotprod, ..NEON };

fn matmul_f32(w: &[f32], cols: usize, x: &[f32], packed: &mut [f32], out: &mut Panel<'_>) {
    // SAFETY: NEON is there, as the target has it.
    unsafe { f32::matmul_f32::<Pair, TOKENS>(w, cols, x, packed, out) }
}

fn matmul_q8_wide(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], packed: &mut [f32], out: &mut Panel<'_>) {
    // SAFETY: NEON is there, as the target has it.
    unsafe { q8::matmul_q8::<Wide, TOKENS>(w, x, xs, packed, out) }
}

fn matmul_q8_dotprod(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], packed: &mut [f32], out: &mut Panel<'_>) {
    // SAFETY: this is reached only through the table of `neon_dotprod`, which detects dotprod.
    unsafe { q8::matmul_q8::<Dotprod, TOKENS>(w, x, xs, packed, out) }
}

/// Two registers of four numbers each.
struct Pair;

impl Registers for Pair {
    type F32 = [float32x4_t; 2];
    type I32 = [int32x4_t; 2];
    const ROWS: usize = 8;

    instructions! {
        load(from: *const f32) -> [float32x4_t; 2] = [vld1q_f32(from), vld1q_f32(from.add(4))];
        load_i32(from: *const f32) -> [int32x4_t; 2] = [vld1q_s32(from.cast()), vld1q_s32(from.add(4).cast())];
        store(to: *mut f32, x: [float32x4_t; 2]) = { vst1q_f32(to, x[0]); vst1q_f32(to.add(4), x[1]) };
        store_i32(to: *mut f32, x: [int32x4_t; 2]) = {
            vst1q_s32(to.cast(), x[0]);
            vst1q_s32(to.add(4).cast(), x[1]);
        };
        splat(x: f32) -> [float32x4_t; 2] = [vdupq_n_f32(x); 2];
        splat_i32(x: i32) -> [int32x4_t; 2] = [vdupq_n_s32(x); 2];
        add(a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] =
            [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])];
        mul(a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] =
            [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])];
        negate(x: [int32x4_t; 2]) -> [int32x4_t; 2] = [vnegq_s32(x[0]), vnegq_s32(x[1])];
        to_f32(x: [int32x4_t; 2]) -> [float32x4_t; 2] = [vcvtq_f32_s32(x[0]), vcvtq_f32_s32(x[1])];
        transpose(from: *const u8, offsets: &Offsets) -> [[int32x4_t; 2]; 4] = {
            let (a, b) = (transpose_4x4(from, offsets, 0), transpose_4x4(from, offsets, 4));
            [[a[0], b[0]], [a[1], b[1]], [a[2], b[2]], [a[3], b[3]]]
        };
    }
}

/// Bytes, multiplied into 16 bits. Of the four columns of each row, the lower half of a register
/// has the first two, and the upper half the others, since a sum of 16 bits has room for two
/// products, and instructions that add up pairs want two neighbours of the same row.
struct Wide;

impl q8::Int8 for Wide {
    type R = Pair;
    const COLUMNS: usize = 4;
    const OFFSET: i32 = 0;

    instructions! {
        dot(sums: [int32x4_t; 2], w: [int32x4_t; 2], x: [int32x4_t; 2]) -> [int32x4_t; 2] =
            [dot_halves(sums[0], w[0], x[0]), dot_halves(sums[1], w[1], x[1])];
        transpose(from: *const u8, offsets: &Offsets) -> [[int32x4_t; 2]; 4] = {
            let [a, b, c, d] = Pair::transpose(from, offsets);
            [
                [halves(a[0]), halves(a[1])],
                [halves(b[0]), halves(b[1])],
                [halves(c[0]), halves(c[1])],
                [halves(d[0]), halves(d[1])],
            ]
        };
    }
}

/// Bytes, for `sdot`.
struct Dotprod;

impl q8::Int8 for Dotprod {
    type R = Pair;
    const COLUMNS: usize = 4;
    const OFFSET: i32 = 0;

    instructions! {
        dot(sums: [int32x4_t; 2], w: [int32x4_t; 2], x: [int32x4_t; 2]) -> [int32x4_t; 2] = [
            sdot(sums[0], vreinterpretq_s8_s32(w[0]), vreinterpretq_s8_s32(x[0])),
            sdot(sums[1], vreinterpretq_s8_s32(w[1]), vreinterpretq_s8_s32(x[1])),
        ];
        transpose(from: *const u8, offsets: &Offsets) -> [[int32x4_t; 2]; 4] = Pair::transpose(from, offsets);
    }
}

/// Weights as [`halves`] orders them, times the same four columns of x in every place.
#[inline]
#[target_feature(enable = "neon")]
fn dot_halves(sums: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    let (w, x) = (vreinterpretq_s8_s32(w), vreinterpretq_s16_s32(x));
    let (first, second) = (vreinterpretq_s8_s16(vtrn1q_s16(x, x)), vreinterpretq_s8_s16(vtrn2q_s16(x, x)));
    widening_dot(sums, vget_low_s8(w), vget_high_s8(w), vget_low_s8(first), vget_high_s8(second))
}

/// The lower 16 bits of all numbers, then the upper ones.
#[inline]
#[target_feature(enable = "neon")]
fn halves(x: int32x4_t) -> int32x4_t {
    let (low, high) = (vmovn_s32(x), vshrn_n_s32::<16>(x));
    vreinterpretq_s32_s16(vcombine_s16(low, high))
}

/// 16 bytes of the rows `r` to `r + 3`, transposed in units of 32 bits.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn transpose_4x4(from: *const u8, offsets: &Offsets, r: usize) -> [int32x4_t; 4] {
    // SAFETY: as the caller vouches.
    let row = |i: usize| unsafe { vld1q_s32(from.add(offsets[r + i]).cast()) };
    let (ab, cd) = (vtrnq_s32(row(0), row(1)), vtrnq_s32(row(2), row(3)));
    let low = |a: int32x4_t, b: int32x4_t| vcombine_s32(vget_low_s32(a), vget_low_s32(b));
    let high = |a: int32x4_t, b: int32x4_t| vcombine_s32(vget_high_s32(a), vget_high_s32(b));
    [low(ab.0, cd.0), low(ab.1, cd.1), high(ab.0, cd.0), high(ab.1, cd.1)]
}
