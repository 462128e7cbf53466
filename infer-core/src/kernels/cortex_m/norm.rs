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

/// A loop over {n} times four numbers, which `$load` puts into the registers `$x`. Where one is
/// larger than the largest so far, which is seldom, a branch leaves for its place behind the loop
/// and comes back. Comparing and taking it are given as what stands before and behind the register.
macro_rules! largest_of_quads {
    (
        $load:literal,
        $compare:literal $branch:literal,
        $take:literal $taken:literal,
        $($x:literal $larger:literal $back:literal),*
    ) => {
        concat!(
            "2: ", $load, "\n",
            $($compare, $x, $branch, " ", $larger, "f\n", $back, ":\n",)*
            "subs {n}, {n}, #1\n",
            "bne 2b\n",
            "b 7f\n",
            $($larger, ": ", $take, $x, $taken, "\nb.w ", $back, "b\n",)*
            "7:",
        )
    };
}

/// The largest of the numbers' bits, shifted left by one.
pub(crate) fn largest_shifted(x: &[f32]) -> u32 {
    let (quads, rest) = x.as_chunks::<4>();
    let mut max = rest.iter().fold(0, |max, x| max.max(x.to_bits() << 1));
    if quads.is_empty() {
        return max;
    }
    // SAFETY: reads quads, which are some.
    unsafe {
        asm!(
            largest_of_quads!(
                "ldmia {x}!, {{r2-r5}}",
                "cmp {max}, " ", lsl #1\nblo.w",
                "lsl {max}, " ", #1",
                "r2" "12" "3", "r3" "13" "4", "r4" "14" "5", "r5" "15" "6"
            ),
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
    // SAFETY: reads quads, which are some.
    unsafe {
        asm!(
            "vmov s4, {max}",
            largest_of_quads!(
                "vldmia {x}!, {{s0-s3}}",
                "vcmp.f32 " ", s4\nvmrs apsr_nzcv, fpscr\nbgt.w",
                "vmov.f32 s4, " "",
                "s0" "12" "3", "s1" "13" "4", "s2" "14" "5", "s3" "15" "6"
            ),
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
