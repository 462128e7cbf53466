//! Attention: positions side by side for scores and powers of two, one after the other for values.

use core::arch::asm;

use super::asm::{exact, exp2, sum_lanes};
use super::rows::max_magnitude;
use crate::kernels::table::{Heads, HeadsQ8, Q8_POSITIONS};
use crate::kernels::{cortex_m, scalar};
use crate::math::{EXP2_G, LANES, ROUND, SMALLEST_SCORE};
use crate::matrix::{rows_of, rows_of_mut};
use crate::plan::block_len;

pub(super) fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    let Heads { positions, head_size, .. } = *heads;
    let blocks = positions.div_ceil(LANES);
    let whole = head_size.is_multiple_of(LANES)
        && heads.keys.len() >= blocks * head_size
        && heads.values.len() >= positions * head_size;
    let vectors = || {
        let rows = rows_of_mut(att, block_len(positions)).zip(rows_of_mut(out, head_size));
        for (q, (att, out)) in rows_of(heads.q, head_size).zip(rows) {
            // SAFETY: `head_size` is a multiple of 8. `att` has a weight for each position, rounded
            // up to a multiple of 8; there are keys for as many (`whole`), and values for all
            // positions.
            unsafe {
                scores(q, heads, att);
                let sum = numerators(att, positions);
                weigh(att, heads, 1.0 / sum, out);
            }
        }
    };
    if !whole || !exact(vectors) {
        (cortex_m::FPU.attend)(heads, att, out);
    }
}

/// Sums up one lane of the dot products: dimension `l` and every eighth from there on.
#[rustfmt::skip]
macro_rules! lane {
    ($l:literal, $low:literal, $high:literal) => {
        concat!(
            "ldr {t}, [{q}, #4*", $l, "]\n",
            "vldrw.u32 ", $low, ", [{keys}, #32*", $l, "]\n",
            "vldrw.u32 ", $high, ", [{keys}, #32*", $l, "+16]\n",
            "vmul.f32 ", $low, ", ", $low, ", {t}\n",
            "vmul.f32 ", $high, ", ", $high, ", {t}\n",
            "wls lr, {more}, 4f\n",
            "add {qd}, {q}, #4*", $l, "\n",
            "add {kd}, {keys}, #32*", $l, "\n",
            "3:\n",
            "ldr {t}, [{qd}, #32]!\n",
            "vldrw.u32 q6, [{kd}, #256]!\n",
            "vldrw.u32 q7, [{kd}, #16]\n",
            "vmul.f32 q6, q6, {t}\n",
            "vmul.f32 q7, q7, {t}\n",
            "vadd.f32 ", $low, ", ", $low, ", q6\n",
            "vadd.f32 ", $high, ", ", $high, ", q7\n",
            "le lr, 3b\n",
            "4:",
        )
    };
}

/// `att[t] = dot(q, key t) · scale`, a block of eight positions at a time.
///
/// # Safety
/// The core has Helium. The head size and the length of `att` are multiples of 8 and not 0. There
/// are keys for as many positions as `att` has scores, and `q` has a number for each dimension.
unsafe fn scores(q: &[f32], heads: &Heads<'_>, att: &mut [f32]) {
    // SAFETY: the loop runs once for each eight scores of `att`, which is not empty. It reads `q`
    // and a block of `head_size` times eight keys, for which the caller vouches, and writes the
    // scores.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "2:",
            lane!(0, "q0", "q1"),
            lane!(4, "q2", "q3"),
            "vadd.f32 q0, q0, q2",
            "vadd.f32 q1, q1, q3",
            lane!(2, "q2", "q3"),
            lane!(6, "q4", "q5"),
            "vadd.f32 q2, q2, q4",
            "vadd.f32 q3, q3, q5",
            "vadd.f32 q0, q0, q2",
            "vadd.f32 q1, q1, q3",
            "vstrw.u32 q0, [{att}]", // there are no more registers
            "vstrw.u32 q1, [{att}, #16]",
            lane!(1, "q0", "q1"),
            lane!(5, "q2", "q3"),
            "vadd.f32 q0, q0, q2",
            "vadd.f32 q1, q1, q3",
            lane!(3, "q2", "q3"),
            lane!(7, "q4", "q5"),
            "vadd.f32 q2, q2, q4",
            "vadd.f32 q3, q3, q5",
            "vadd.f32 q0, q0, q2",
            "vadd.f32 q1, q1, q3",
            "vldrw.u32 q2, [{att}]",
            "vldrw.u32 q3, [{att}, #16]",
            "vadd.f32 q0, q2, q0",
            "vadd.f32 q1, q3, q1",
            "vmul.f32 q0, q0, {scale}",
            "vmul.f32 q1, q1, {scale}",
            "vstrw.u32 q0, [{att}], #16",
            "vstrw.u32 q1, [{att}], #16",
            "add {keys}, {keys}, {block_bytes}",
            "cmp {att}, {end}",
            "bne 2b",
            q = in(reg) q.as_ptr(),
            keys = inout(reg) heads.keys.as_ptr() => _,
            att = inout(reg) att.as_mut_ptr() => _,
            end = in(reg) att.as_ptr_range().end,
            more = in(reg) heads.head_size / LANES - 1,
            scale = in(reg) heads.scale,
            block_bytes = in(reg) heads.head_size * size_of::<[f32; LANES]>(),
            t = out(reg) _,
            qd = out(reg) _,
            kd = out(reg) _,
            out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _,
            out("d15") _,
            options(nostack),
        );
    }
}

/// Turns scores into the numerators of softmax, 0 behind the last position, and returns their sum.
///
/// # Safety
/// The core has Helium. The length of `att` is a multiple of 8.
unsafe fn numerators(att: &mut [f32], positions: usize) -> f32 {
    if let Some(rest) = att.get_mut(positions..) {
        rest.fill(f32::NEG_INFINITY);
    }
    #[rustfmt::skip] // an instruction per line
    macro_rules! four_numerators {
        ($sum:literal) => {
            concat!(
                "vldrw.u32 q0, [{att}]\n",
                "vsub.f32 q0, q0, {max}\n",
                exp2!(), "\n",
                "vpt.f32 gt, q6, q0\n", // false for NaN
                "vmovt.i32 q3, #0\n",
                "vstrw.u32 q3, [{att}], #16\n",
                "vadd.f32 ", $sum, ", ", $sum, ", q3",
            )
        };
    }
    let [g0, g1, g2, g3, g4] = EXP2_G;
    let sum;
    // SAFETY: the loops read and write `att` in vectors of four, as many as it has.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "vdup.32 q6, {t}",
            "vmov.i32 q4, #0",
            "vmov.i32 q5, #0",
            "mov {t}, {att}",
            "wls lr, {blocks}, 4f",
            "2:",
            "vldrw.u32 q0, [{t}], #16",
            "vldrw.u32 q1, [{t}], #16",
            "vmaxnm.f32 q0, q0, q1", // a NaN counts for nothing
            "vmaxnmv.f32 {max}, q0",
            "le lr, 2b",
            "dls lr, {blocks}",
            "3:",
            four_numerators!("q4"),
            four_numerators!("q5"),
            "le lr, 3b",
            "4:",
            sum_lanes!(),
            "vmov {max}, s16",
            att = inout(reg) att.as_mut_ptr() => _,
            blocks = in(reg) att.len() / LANES,
            t = inout(reg) SMALLEST_SCORE.to_bits() => _,
            max = inout(reg) f32::NEG_INFINITY => sum,
            round = in(reg) ROUND,
            one = in(reg) 1f32,
            g0 = in(reg) g0,
            g1 = in(reg) g1,
            g2 = in(reg) g2,
            g3 = in(reg) g3,
            g4 = in(reg) g4,
            out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _,
            options(nostack),
        );
    }
    sum
}

/// `out = Σ_t att[t] · values[t] · inverse`, sequential over positions, eight dimensions at a time.
///
/// # Safety
/// The core has Helium. `att` has a weight for each position, and there is a row of `head_size`
/// values for each; the head size is a multiple of 8.
unsafe fn weigh(att: &[f32], heads: &Heads<'_>, inverse: f32, out: &mut [f32]) {
    for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        // SAFETY: the loop runs once for each position and reads its weight and the eight values of
        // dimensions 8i to 8i + 7, for which the caller vouches. `out` has the eight numbers
        // written.
        unsafe {
            asm!(
                ".cpu cortex-m55",
                "vmov.i32 q0, #0",
                "vmov.i32 q1, #0",
                "wls lr, lr, 3f",
                "2:",
                "ldr {a}, [{att}], #4",
                "vldrw.u32 q2, [{values}]",
                "vldrw.u32 q3, [{values}, #16]",
                "add {values}, {values}, {row_bytes}",
                "vmul.f32 q2, q2, {a}",
                "vmul.f32 q3, q3, {a}",
                "vadd.f32 q0, q0, q2",
                "vadd.f32 q1, q1, q3",
                "le lr, 2b",
                "3:",
                "vmul.f32 q0, q0, {inverse}",
                "vmul.f32 q1, q1, {inverse}",
                "vstrw.u32 q0, [{out}]",
                "vstrw.u32 q1, [{out}, #16]",
                att = inout(reg) att.as_ptr() => _,
                values = inout(reg) heads.values.as_ptr().wrapping_add(LANES * i) => _,
                row_bytes = in(reg) heads.head_size * size_of::<f32>(),
                a = out(reg) _,
                inverse = in(reg) inverse,
                out = in(reg) out.as_mut_ptr(),
                inout("lr") heads.positions => _,
                out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
                options(nostack),
            );
        }
    }
}

/// This is exact without the guard. A scale is 0 or at least 2^-107, so only a score can be
/// subnormal, and one so near 0 changes no power of 2; weights are 0 or at least 2^-60; and the
/// last product is the FPU's.
pub(super) fn attend_q8(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]) {
    let HeadsQ8 { positions, head_size, .. } = *heads;
    let slots = block_len(positions);
    let enough = heads.keys.len().min(heads.values.len()) >= slots * head_size
        && heads.key_scales.len().min(heads.value_scales.len()) >= slots;
    let Some(value_scales) = heads.value_scales.get(..positions).filter(|_| enough && head_size.is_multiple_of(4))
    else {
        return; // the cache has them all, and such head sizes only
    };
    let (unit, factor) = scalar::weight_unit(max_magnitude(value_scales));
    let q = rows_of(heads.q, head_size).zip(heads.q_scales);
    let rows = rows_of_mut(att, slots).zip(rows_of_mut(out, head_size));
    for ((q, q_scale), (att, out)) in q.zip(rows) {
        // SAFETY: `head_size` is a multiple of 4. `att` has a weight for each position, rounded up
        // to a multiple of 8, and there are keys, values and scales for as many, as checked above.
        unsafe {
            scores_q8(q, q_scale * heads.scale, heads, att);
            let sum = numerators(att, positions);
            quantize_weights(att, factor, heads);
            weigh_q8(att, heads, unit / sum, out);
        }
    }
}

/// # Safety
/// The core has Helium. The length of `att` is a multiple of 8 and not 0, the head size a multiple
/// of 4. There are keys and scales for as many positions as `att` has scores, and `q` has a number
/// for each dimension.
unsafe fn scores_q8(q: &[i8], scale: f32, heads: &HeadsQ8<'_>, att: &mut [f32]) {
    /// Adds the products of four positions and four dimensions to their sums.
    #[rustfmt::skip] // an instruction per line
    macro_rules! add_products {
        ($sum:literal) => {
            concat!(
                "vldrb.u8 q3, [{keys}], #16\n",
                "vmullb.s8 q4, q3, q2\n",
                "vmullt.s8 q5, q3, q2\n",
                "vadd.i16 q4, q4, q5\n", // at most 2 · 127 · 128
                "vmovlb.s16 q5, q4\n",
                "vmovlt.s16 q4, q4\n",
                "vadd.i32 ", $sum, ", ", $sum, ", q5\n",
                "vadd.i32 ", $sum, ", ", $sum, ", q4",
            )
        };
    }
    #[rustfmt::skip] // an instruction per line
    macro_rules! scale_and_store {
        ($sum:literal) => {
            concat!(
                "vldrw.u32 q2, [{scales}], #16\n",
                "vcvt.f32.s32 ", $sum, ", ", $sum, "\n",
                "vmul.f32 ", $sum, ", ", $sum, ", q2\n",
                "vmul.f32 ", $sum, ", ", $sum, ", {scale}\n",
                "vstrw.u32 ", $sum, ", [{att}], #16",
            )
        };
    }
    // SAFETY: the loop runs once for each eight scores of `att`, which is not empty. It reads `q`,
    // a block of `head_size` times eight keys and eight scales, for which the caller vouches, and
    // writes the scores.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "2:",
            "vmov.i32 q0, #0", // sums of four positions
            "vmov.i32 q1, #0", // and of the next four
            "mov {qd}, {q}",
            "dls lr, {quads}",
            "3:",
            "ldr {t}, [{qd}], #4",
            "vdup.32 q2, {t}",
            add_products!("q0"),
            add_products!("q1"),
            "le lr, 3b",
            scale_and_store!("q0"),
            scale_and_store!("q1"),
            "cmp {att}, {end}",
            "bne 2b",
            q = in(reg) q.as_ptr(),
            qd = out(reg) _,
            keys = inout(reg) heads.keys.as_ptr() => _,
            scales = inout(reg) heads.key_scales.as_ptr() => _,
            att = inout(reg) att.as_mut_ptr() => _,
            end = in(reg) att.as_ptr_range().end,
            quads = in(reg) heads.head_size / 4,
            scale = in(reg) scale,
            t = out(reg) _,
            out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _,
            options(nostack),
        );
    }
}

/// Puts 16-bit integers in the place of the weights, in the first half of `att`. A subnormal number
/// becomes 0 here anyway.
///
/// # Safety
/// The core has Helium. The length of `att` is a multiple of 8, and there is a scale for each
/// weight.
unsafe fn quantize_weights(att: &mut [f32], factor: f32, heads: &HeadsQ8<'_>) {
    // SAFETY: the loop reads `att` and as many scales, for which the caller vouches, in vectors of
    // four, and writes to `att` behind its reads.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "wls lr, lr, 3f",
            "2:",
            "vldrw.u32 q0, [{scales}], #16",
            "vldrw.u32 q1, [{weights}], #16",
            "vmul.f32 q0, q0, {factor}",
            "vmul.f32 q0, q1, q0",
            "vadd.f32 q0, q0, {round}",
            "vstrh.32 q0, [r0], #8",
            "le lr, 2b",
            "3:",
            scales = inout(reg) heads.value_scales.as_ptr() => _,
            weights = inout(reg) att.as_ptr() => _,
            inout("r0") att.as_mut_ptr() => _, // a low register, as stores that narrow ask for
            factor = in(reg) factor,
            round = in(reg) ROUND,
            inout("lr") att.len() / 4 => _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _,
            options(nostack),
        );
    }
    // Scales behind the last position may be anything, and so may what came of them.
    if let Some(rest) = bytemuck::cast_slice_mut::<f32, i16>(att).get_mut(heads.positions..block_len(heads.positions)) {
        rest.fill(0);
    }
}

/// # Safety
/// The core has Helium. `att` holds weights as [`quantize_weights`] leaves them, the length of
/// `att` is a multiple of 8, there are values for as many positions, and the head size is a
/// multiple of 4.
unsafe fn weigh_q8(att: &[f32], heads: &HeadsQ8<'_>, scale: f32, out: &mut [f32]) {
    const BLOCKS: usize = Q8_POSITIONS / LANES;
    let blocks = att.len() / LANES;
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let mut weights = att.as_ptr();
        let mut values = heads.values.as_ptr().wrapping_add(4 * LANES * i);
        let mut totals = [0.0; 4];
        for first in (0..blocks).step_by(BLOCKS) {
            let mut sums = [0; 4];
            // SAFETY: the loop runs once for each of the remaining blocks, at most BLOCKS. It reads
            // their eight 16-bit weights and four dimensions of eight values, from dimension 4i on,
            // for which the caller vouches.
            unsafe {
                asm!(
                    ".cpu cortex-m55",
                    "wls lr, lr, 3f",
                    "2:",
                    "vldrh.u16 q0, [{weights}], #16",
                    "vldrb.s16 q1, [r1]",
                    "vmladava.s16 r0, q0, q1",
                    "vldrb.s16 q1, [r1, #8]",
                    "vmladava.s16 r2, q0, q1",
                    "vldrb.s16 q1, [r1, #16]",
                    "vmladava.s16 r4, q0, q1",
                    "vldrb.s16 q1, [r1, #24]",
                    "vmladava.s16 r8, q0, q1",
                    "add r1, r1, {block_bytes}",
                    "le lr, 2b",
                    "3:",
                    weights = inout(reg) weights,
                    inout("r1") values, // a low register, as loads that widen ask for
                    block_bytes = in(reg) heads.head_size * LANES,
                    inout("r0") sums[0],
                    inout("r2") sums[1],
                    inout("r4") sums[2],
                    inout("r8") sums[3],
                    inout("lr") BLOCKS.min(blocks - first) => _,
                    out("d0") _, out("d1") _, out("d2") _, out("d3") _,
                    options(nostack, readonly),
                );
            }
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum as f32);
        }
        *out = totals.map(|total| total * scale);
    }
}
