//! Products of sixteen bytes with sixteen others, added up in four sums.

use core::arch::aarch64::*;
use core::arch::asm;

/// Adds to each number of `sums` the products of two bytes of `w_low` and `x_low` and of two of
/// `w_high` and `x_high`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn widening_dot(
    sums: int32x4_t,
    w_low: int8x8_t,
    w_high: int8x8_t,
    x_low: int8x8_t,
    x_high: int8x8_t,
) -> int32x4_t {
    // Two products in 16 bits: |x| <= 127 and |w| <= 128 give at most 32,512.
    vpadalq_s16(sums, vmlal_s8(vmull_s8(w_low, x_low), w_high, x_high))
}

/// Adds to each number of `sums` the products of the four bytes of `w` and `x` in its place. Stable
/// Rust has no intrinsic for this instruction.
///
/// # Safety
/// The machine has dotprod.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn sdot(mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the instruction, which touches these registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
            sums = inlateout(vreg) sums,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
