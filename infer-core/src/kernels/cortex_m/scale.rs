//! Turns the integer sums of groups into outputs.

use core::arch::asm;

use super::asm::{eight, sum_lanes};
use crate::math::LANES;

/// Scales the sums of the groups of pairs of rows, and adds each to its lane.
///
/// # Safety
/// `sums` points to the sums of `xs.len()` groups for each pair, one pair after the other, and `ws`
/// to `xs.len()` scales for each row. Neither `xs` nor `pairs` is empty.
pub(super) unsafe fn add_groups(sums: *const [i32; 2], ws: *const f32, xs: &[f32], pairs: &mut [[f32; 2]]) {
    static ZERO: [f32; 2 * LANES] = [0.0; 2 * LANES];
    #[rustfmt::skip] // an instruction per line
    macro_rules! lane {
        ($lane0:literal, $lane1:literal) => {
            concat!(
                "vldmia {sums}!, {{s0-s1}}\n",
                "vldmia {ws0}!, {{s2}}\n",
                "vldmia {ws1}!, {{s3}}\n",
                "vldmia {x}!, {{s4}}\n",
                "vcvt.f32.s32 s0, s0\n",
                "vcvt.f32.s32 s1, s1\n",
                "vmul.f32 s0, s0, s2\n",
                "vmul.f32 s1, s1, s3\n",
                "vmul.f32 s0, s0, s4\n",
                "vmul.f32 s1, s1, s4\n",
                "vadd.f32 ", $lane0, ", ", $lane0, ", s0\n",
                "vadd.f32 ", $lane1, ", ", $lane1, ", s1\n",
                "subs {n}, {n}, #1\n",
                "beq.w 4f\n",
            )
        };
    }
    // SAFETY: neither `pairs` nor `xs` is empty. For each pair the code reads `xs.len()` sums,
    // scales of both rows and scales of x, for which the caller vouches, and writes the pair.
    unsafe {
        asm!(
            "2:",
            "vldmia {zero}, {{s16-s31}}",
            "mov {x}, {xs}",
            "mov {n}, {groups}",
            "3:",
            lane!("s16", "s24"),
            lane!("s17", "s25"),
            lane!("s18", "s26"),
            lane!("s19", "s27"),
            lane!("s20", "s28"),
            lane!("s21", "s29"),
            lane!("s22", "s30"),
            lane!("s23", "s31"),
            "b.w 3b",
            "4:",
            sum_lanes!(),
            "vstmia {out}!, {{s16-s17}}",
            "mov {ws0}, {ws1}", // behind the scales of row 1
            "add {ws1}, {ws1}, {groups}, lsl #2",
            "subs {pairs}, {pairs}, #1",
            "bne.w 2b",
            zero = in(reg) ZERO.as_ptr(),
            sums = inout(reg) sums => _,
            ws0 = inout(reg) ws => _,
            ws1 = inout(reg) ws.wrapping_add(xs.len()) => _,
            xs = in(reg) xs.as_ptr(),
            x = out(reg) _,
            groups = in(reg) xs.len(),
            n = out(reg) _,
            out = inout(reg) pairs.as_mut_ptr() => _,
            pairs = inout(reg) pairs.len() => _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s16") _, out("s17") _, out("s18") _,
            out("s19") _, out("s20") _, out("s21") _, out("s22") _, out("s23") _, out("s24") _, out("s25") _,
            out("s26") _, out("s27") _, out("s28") _, out("s29") _, out("s30") _, out("s31") _,
            options(nostack),
        );
    }
}

/// Multiplies integer sums, which stand in the place of the outputs, by the scales of weights and
/// of x. Adding 0 does what adding up the other lanes, all 0, would do.
pub(super) fn scale(sums: &mut [f32], ws: &[f32], xs: f32) {
    let (blocks, rest) = sums.as_chunks_mut::<LANES>();
    let (scales, scales_rest) = ws.split_at_checked(blocks.len() * LANES).unwrap_or_default();
    if !blocks.is_empty() && !scales.is_empty() {
        // SAFETY: `blocks` is not empty; `scales` has eight numbers for each block, as it was cut
        // so.
        unsafe { scale_blocks(blocks, scales.as_ptr(), xs) }
    }
    for (sum, ws) in rest.iter_mut().zip(scales_rest) {
        *sum = (sum.to_bits() as i32 as f32 * ws) * xs + 0.0;
    }
}

/// # Safety
/// `blocks` is not empty, and `ws` points to eight numbers for each block.
unsafe fn scale_blocks(blocks: &mut [[f32; LANES]], ws: *const f32, xs: f32) {
    // SAFETY: `blocks` is not empty; the loop reads and writes its `blocks.len()` elements of eight
    // numbers from its start, and reads as many numbers from `ws` on.
    unsafe {
        asm!(
            "vmov s16, s17, {xs}, {zero}",
            "2:",
            "vldmia {blocks}, {{s0-s7}}",
            "vldmia {ws}!, {{s8-s15}}",
            eight!("vcvt.f32.s32", s0),
            eight!("vmul.f32", s0, s8),
            eight!("vmul.f32", s0, "s16"),
            eight!("vadd.f32", s0, "s17"),
            "vstmia {blocks}!, {{s0-s7}}",
            "subs {n}, {n}, #1",
            "bne.w 2b",
            blocks = inout(reg) blocks.as_mut_ptr() => _,
            ws = inout(reg) ws => _,
            n = inout(reg) blocks.len() => _,
            xs = in(reg) xs,
            zero = in(reg) 0f32,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _, out("s17") _,
            options(nostack),
        );
    }
}
