//! Root mean square normalisation, and the largest of some numbers.

use core::arch::asm;

use super::eight;
use crate::math::{self, LANES, rms_scale, sum_lanes};

pub(super) fn rmsnorm(out: &mut [f32], x: &[f32], weight: &[f32]) {
    let ((blocks, rest), (weights, _)) = (x.as_chunks(), weight.as_chunks());
    let (outs, _) = out.as_chunks_mut();
    if blocks.is_empty() || !rest.is_empty() || weights.len() != blocks.len() || outs.len() != blocks.len() {
        return math::rmsnorm(out, x, weight);
    }
    // SAFETY: all three have as many blocks, and some.
    unsafe {
        let sum = sum_lanes(squares(blocks));
        scale(outs, blocks, weights, rms_scale(sum, x.len()));
    }
}

/// Lanes of the sum of squares.
///
/// # Safety
/// `x` is not empty.
unsafe fn squares(x: &[[f32; LANES]]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: reads x, reads and writes lanes.
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
    // SAFETY: reads x and weight, writes out.
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

/// The largest of the numbers' bits, shifted left by one. By branches, as a larger one is seldom found.
pub(crate) fn largest_shifted(x: &[f32]) -> u32 {
    let (quads, rest) = x.as_chunks::<4>();
    let mut max = rest.iter().fold(0, |max, x| max.max(x.to_bits() << 1));
    if quads.is_empty() {
        return max;
    }
    macro_rules! compare {
        ($x:literal, $larger:literal, $back:literal) => {
            concat!("cmp {max}, ", $x, ", lsl #1\nblo.w ", $larger, "f\n", $back, ":\n")
        };
    }
    macro_rules! take {
        ($x:literal, $larger:literal, $back:literal) => {
            concat!($larger, ": lsl {max}, ", $x, ", #1\nb.w ", $back, "b\n")
        };
    }
    // SAFETY: reads quads, which are some.
    unsafe {
        asm!(
            "2:",
            "ldmia {x}!, {{r2-r5}}",
            compare!("r2", "12", "3"),
            compare!("r3", "13", "4"),
            compare!("r4", "14", "5"),
            compare!("r5", "15", "6"),
            "subs {n}, {n}, #1",
            "bne 2b",
            "b 7f",
            take!("r2", "12", "3"),
            take!("r3", "13", "4"),
            take!("r4", "14", "5"),
            take!("r5", "15", "6"),
            "7:",
            x = inout(reg) quads.as_ptr() => _,
            n = inout(reg) quads.len() => _,
            max = inout(reg) max,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(nostack, readonly),
        );
    }
    max
}

/// The largest number; NaN counts for nothing.
pub(crate) fn largest(x: &[f32]) -> f32 {
    let (quads, rest) = x.as_chunks::<4>();
    let mut max = rest.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    if quads.is_empty() {
        return max;
    }
    macro_rules! compare {
        ($x:literal, $larger:literal, $back:literal) => {
            concat!("vcmp.f32 ", $x, ", s4\nvmrs apsr_nzcv, fpscr\nbgt.w ", $larger, "f\n", $back, ":\n")
        };
    }
    macro_rules! take {
        ($x:literal, $larger:literal, $back:literal) => {
            concat!($larger, ": vmov.f32 s4, ", $x, "\nb.w ", $back, "b\n")
        };
    }
    // SAFETY: reads quads, which are some.
    unsafe {
        asm!(
            "vmov s4, {max}",
            "2:",
            "vldmia {x}!, {{s0-s3}}",
            compare!("s0", "12", "3"),
            compare!("s1", "13", "4"),
            compare!("s2", "14", "5"),
            compare!("s3", "15", "6"),
            "subs {n}, {n}, #1",
            "bne 2b",
            "b 7f",
            take!("s0", "12", "3"),
            take!("s1", "13", "4"),
            take!("s2", "14", "5"),
            take!("s3", "15", "6"),
            "7:",
            "vmov {max}, s4",
            x = inout(reg) quads.as_ptr() => _,
            n = inout(reg) quads.len() => _,
            max = inout(reg) max,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _,
            options(nostack, readonly),
        );
    }
    max
}
