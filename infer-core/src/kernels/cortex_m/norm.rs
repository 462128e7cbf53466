//! Root mean square normalisation.

use core::arch::asm;

use super::asm::eight;
use crate::math::{LANES, dot, mean_square, sum_lanes, thumb};

pub(crate) fn rmsnorm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let ((blocks, rest), (weights, _)) = (x.as_chunks(), weight.as_chunks());
    let (outs, _) = out.as_chunks_mut();
    if blocks.is_empty() || !rest.is_empty() || weights.len() != blocks.len() || outs.len() != blocks.len() {
        let scale = rms_scale(dot(x, x), x.len(), eps);
        return out.iter_mut().zip(x).zip(weight).for_each(|((out, x), weight)| *out = weight * (scale * x));
    }
    // SAFETY: `blocks` is not empty, and `outs` and `weights` are as long.
    unsafe {
        let sum = sum_lanes(squares(blocks));
        scale(outs, blocks, weights, rms_scale(sum, x.len(), eps));
    }
}

/// The factor of the norm, given the sum of `n` squares.
pub(crate) fn rms_scale(sum: f32, n: usize, eps: f32) -> f32 {
    1.0 / thumb::sqrt(mean_square(sum, n, eps))
}

/// The lanes of the sum of squares.
///
/// # Safety
/// `x` is not empty.
unsafe fn squares(x: &[[f32; LANES]]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: `x` is not empty; the loop reads its `x.len()` elements of eight numbers from its
    // start. `lanes` has the eight numbers that are read and written.
    unsafe {
        asm!(
            "vldmia {lanes}, {{s8-s15}}",
            "2:",
            "vldmia {x}!, {{s0-s7}}",
            eight!("vmul.f32", s0, s0),
            eight!("vadd.f32", s8, s0),
            "subs {n}, {n}, #1",
            "bne.w 2b",
            "vstmia {lanes}, {{s8-s15}}",
            x = inout(reg) x.as_ptr() => _,
            lanes = in(reg) lanes.as_mut_ptr(),
            n = inout(reg) x.len() => _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _,
            options(nostack),
        );
    }
    lanes
}

/// `out = weight · (factor · x)`
///
/// # Safety
/// All three have the same length, which is not 0.
unsafe fn scale(out: &mut [[f32; LANES]], x: &[[f32; LANES]], weight: &[[f32; LANES]], factor: f32) {
    // SAFETY: all three have the same length, which is not 0; the loop reads `x.len()` elements of
    // eight numbers of `x` and `weight` from their starts and writes as many of `out`.
    unsafe {
        asm!(
            "vmov s16, {factor}",
            "2:",
            "vldmia {x}!, {{s0-s7}}",
            "vldmia {weight}!, {{s8-s15}}",
            eight!("vmul.f32", s0, "s16"),
            eight!("vmul.f32", s0, s8),
            "vstmia {out}!, {{s0-s7}}",
            "subs {n}, {n}, #1",
            "bne.w 2b",
            x = inout(reg) x.as_ptr() => _,
            weight = inout(reg) weight.as_ptr() => _,
            out = inout(reg) out.as_mut_ptr() => _,
            n = inout(reg) x.len() => _,
            factor = in(reg) factor,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _,
            options(nostack),
        );
    }
}
