//! Softmax's numerators and SwiGLU, both made of powers of two, four numbers at a time.

use core::arch::asm;

use super::asm::eight;
use crate::math::{self, EXP2_G, LANES, ROUND, SMALLEST_SCORE, exp2_score, sum_lanes, thumb};

/// Replaces four registers by their [`exp2`](math::exp2), given [`CONSTANTS`] in s24 to s30 and
/// {one} = 1.0. Changes s8 to s15, {a} and {b}. `$check` is code that runs whenever {a} and {b}
/// hold the bits of n + ROUND of two of the numbers.
macro_rules! exp2_of_four {
    ($x0:literal, $x1:literal, $x2:literal, $x3:literal, $check:expr) => {
        concat!(
            "vadd.f32 s8, ", $x0, ", s24\n", // n + ROUND
            "vadd.f32 s9, ", $x1, ", s24\n",
            "vadd.f32 s10, ", $x2, ", s24\n",
            "vadd.f32 s11, ", $x3, ", s24\n",
            "vsub.f32 s12, s8, s24\n",
            "vsub.f32 s13, s9, s24\n",
            "vsub.f32 s14, s10, s24\n",
            "vsub.f32 s15, s11, s24\n",
            "vsub.f32 ", $x0, ", ", $x0, ", s12\n", // f
            "vsub.f32 ", $x1, ", ", $x1, ", s13\n",
            "vsub.f32 ", $x2, ", ", $x2, ", s14\n",
            "vsub.f32 ", $x3, ", ", $x3, ", s15\n",
            "vmul.f32 s12, ", $x0, ", s25\n",
            "vmul.f32 s13, ", $x1, ", s25\n",
            "vmul.f32 s14, ", $x2, ", s25\n",
            "vmul.f32 s15, ", $x3, ", s25\n",
            exp2_of_four!(@term "s26", $x0, $x1, $x2, $x3),
            exp2_of_four!(@term "s27", $x0, $x1, $x2, $x3),
            exp2_of_four!(@term "s28", $x0, $x1, $x2, $x3),
            exp2_of_four!(@term "s29", $x0, $x1, $x2, $x3),
            "vadd.f32 s12, s12, s30\n",
            "vadd.f32 s13, s13, s30\n",
            "vadd.f32 s14, s14, s30\n",
            "vadd.f32 s15, s15, s30\n",
            "vmov {a}, {b}, s8, s9\n",
            $check,
            "add {a}, {one}, {a}, lsl #23\n", // 2^n
            "add {b}, {one}, {b}, lsl #23\n",
            "vmov s8, s9, {a}, {b}\n",
            "vmov {a}, {b}, s10, s11\n",
            $check,
            "add {a}, {one}, {a}, lsl #23\n",
            "add {b}, {one}, {b}, lsl #23\n",
            "vmov s10, s11, {a}, {b}\n",
            "vmul.f32 ", $x0, ", s12, s8\n",
            "vmul.f32 ", $x1, ", s13, s9\n",
            "vmul.f32 ", $x2, ", s14, s10\n",
            "vmul.f32 ", $x3, ", s15, s11\n",
        )
    };
    (@term $g:literal, $x0:literal, $x1:literal, $x2:literal, $x3:literal) => {
        concat!(
            "vadd.f32 s12, s12, ", $g, "\n",
            "vadd.f32 s13, s13, ", $g, "\n",
            "vadd.f32 s14, s14, ", $g, "\n",
            "vadd.f32 s15, s15, ", $g, "\n",
            "vmul.f32 s12, s12, ", $x0, "\n",
            "vmul.f32 s13, s13, ", $x1, "\n",
            "vmul.f32 s14, s14, ", $x2, "\n",
            "vmul.f32 s15, s15, ", $x3, "\n",
        )
    };
}

/// The constants that [`exp2_of_four`] takes in s24 to s30.
static CONSTANTS: [f32; 7] = {
    let [g0, g1, g2, g3, g4] = EXP2_G;
    [ROUND, g4, g3, g2, g1, g0, 1.0]
};

/// Turns scores into the numerators of softmax, and returns their sum.
pub(super) fn numerators(scores: &mut [f32]) -> f32 {
    let max = thumb::max(scores);
    let mut lanes = [0.0; LANES];
    let add = |scores: &mut [f32], lanes: &mut [f32; LANES]| {
        for (score, lane) in scores.iter_mut().zip(lanes) {
            *score = exp2_score(*score - max);
            *lane += *score;
        }
    };
    let (mut blocks, tail) = scores.as_chunks_mut::<LANES>();
    while !blocks.is_empty() {
        // SAFETY: `blocks` is not empty.
        let left = unsafe { numerators_of_blocks(blocks, max, &mut lanes) };
        let done = blocks.len() - left.min(blocks.len());
        let Some((block, rest)) = blocks.get_mut(done..).and_then(|blocks| blocks.split_first_mut()) else { break };
        add(block, &mut lanes);
        blocks = rest;
    }
    add(tail, &mut lanes);
    sum_lanes(lanes)
}

/// Does the work of [`numerators`] up to the first block with a score that becomes 0, or nearly so.
/// Adds to the lanes of the sum, and returns the number of blocks that are left.
///
/// # Safety
/// `blocks` is not empty.
unsafe fn numerators_of_blocks(blocks: &mut [[f32; LANES]], max: f32, lanes: &mut [f32; LANES]) -> usize {
    // For any n from here on, 2^n · 2^f is above the smallest numerator whatever f is. Floats above
    // 0 compare like their bits as integers.
    const SMALLEST_N: u32 = (ROUND + SMALLEST_SCORE + 1.0).to_bits();
    macro_rules! leave_if_small {
        () => {
            "cmp {a}, {smallest}
            blt.w 3f
            cmp {b}, {smallest}
            blt.w 3f\n"
        };
    }
    let mut left = blocks.len();
    // SAFETY: `blocks` is not empty; the loop reads and writes at most its `blocks.len()` elements
    // of eight numbers from its start. `lanes` has eight numbers, and `CONSTANTS` the seven that
    // are read.
    unsafe {
        asm!(
            "vldmia {constants}, {{s24-s30}}",
            "vmov s31, {max}",
            "vldmia {lanes}, {{s16-s23}}",
            "2:",
            "vldmia {blocks}, {{s0-s7}}",
            eight!("vsub.f32", s0, "s31"),
            exp2_of_four!("s0", "s1", "s2", "s3", leave_if_small!()),
            exp2_of_four!("s4", "s5", "s6", "s7", leave_if_small!()),
            eight!("vadd.f32", s16, s0),
            "vstmia {blocks}!, {{s0-s7}}",
            "subs {left}, {left}, #1",
            "bne.w 2b",
            "3:",
            "vstmia {lanes}, {{s16-s23}}",
            constants = in(reg) CONSTANTS.as_ptr(),
            max = in(reg) max,
            lanes = in(reg) lanes.as_mut_ptr(),
            blocks = inout(reg) blocks.as_mut_ptr() => _,
            left = inout(reg) left,
            smallest = in(reg) SMALLEST_N,
            one = in(reg) 1f32.to_bits(),
            a = out(reg) _,
            b = out(reg) _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _, out("s17") _, out("s18") _, out("s19") _, out("s20") _, out("s21") _,
            out("s22") _, out("s23") _, out("s24") _, out("s25") _, out("s26") _, out("s27") _, out("s28") _,
            out("s29") _, out("s30") _, out("s31") _,
            options(nostack),
        );
    }
    left
}

pub(super) fn swiglu(hb: &mut [f32], hb2: &[f32]) {
    let (mut quads, tail) = hb.as_chunks_mut::<4>();
    let (mut gates, gates_tail) = hb2.as_chunks::<4>();
    while !quads.is_empty() && quads.len() <= gates.len() {
        // SAFETY: `quads` is not empty, and `gates` is at least as long.
        let left = unsafe { swiglu_of_quads(quads, gates) };
        let done = quads.len() - left.min(quads.len());
        let Some((quad, rest)) = quads.get_mut(done..).and_then(|quads| quads.split_first_mut()) else { break };
        let Some((gate, gates_rest)) = gates.get(done..).and_then(|gates| gates.split_first()) else { break };
        math::swiglu(quad, gate);
        (quads, gates) = (rest, gates_rest);
    }
    math::swiglu(tail, gates_tail);
}

/// Does the work of [`math::swiglu`] up to the first quad with a NaN or with magnitudes that add up
/// to more than 80, which is near where exp leaves its range. Returns the number of quads that are
/// left.
///
/// # Safety
/// `quads` is not empty, and `gates` is at least as long.
unsafe fn swiglu_of_quads(quads: &mut [[f32; 4]], gates: &[[f32; 4]]) -> usize {
    let mut left = quads.len();
    // SAFETY: `quads` is not empty; the loop reads and writes at most its `quads.len()` elements of
    // four numbers from its start, and reads as many of `gates`. `CONSTANTS` has the seven numbers
    // that are read.
    unsafe {
        asm!(
            "vldmia {constants}, {{s24-s30}}",
            "vmov s16, s17, {largest}, {minus_log2_e}",
            "2:",
            "vldmia {quads}, {{s4-s7}}",
            "vabs.f32 s0, s4",
            "vabs.f32 s1, s5",
            "vabs.f32 s2, s6",
            "vabs.f32 s3, s7",
            "vadd.f32 s0, s0, s1",
            "vadd.f32 s2, s2, s3",
            "vadd.f32 s0, s0, s2",
            "vcmp.f32 s0, s16",
            "vmrs apsr_nzcv, fpscr",
            "bpl.w 3f", // true for NaN
            "vmul.f32 s0, s4, s17",
            "vmul.f32 s1, s5, s17",
            "vmul.f32 s2, s6, s17",
            "vmul.f32 s3, s7, s17",
            exp2_of_four!("s0", "s1", "s2", "s3", ""),
            "vadd.f32 s0, s0, s30",
            "vadd.f32 s1, s1, s30",
            "vadd.f32 s2, s2, s30",
            "vadd.f32 s3, s3, s30",
            "vdiv.f32 s4, s4, s0",
            "vdiv.f32 s5, s5, s1",
            "vdiv.f32 s6, s6, s2",
            "vdiv.f32 s7, s7, s3",
            "vldmia {gates}!, {{s0-s3}}",
            "vmul.f32 s4, s4, s0",
            "vmul.f32 s5, s5, s1",
            "vmul.f32 s6, s6, s2",
            "vmul.f32 s7, s7, s3",
            "vstmia {quads}!, {{s4-s7}}",
            "subs {left}, {left}, #1",
            "bne.w 2b",
            "3:",
            constants = in(reg) CONSTANTS.as_ptr(),
            minus_log2_e = in(reg) -core::f32::consts::LOG2_E,
            quads = inout(reg) quads.as_mut_ptr() => _,
            gates = inout(reg) gates.as_ptr() => _,
            left = inout(reg) left,
            one = in(reg) 1f32.to_bits(),
            largest = in(reg) 80f32,
            a = out(reg) _,
            b = out(reg) _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _, out("s17") _, out("s24") _, out("s25") _, out("s26") _, out("s27") _,
            out("s28") _, out("s29") _, out("s30") _,
            options(nostack),
        );
    }
    left
}
