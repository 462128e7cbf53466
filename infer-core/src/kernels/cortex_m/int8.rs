//! The int8 matrix product and its input, for the DSP extension.

use core::arch::asm;

use super::with_dsp;
use crate::kernels::scalar;
use crate::math::{LANES, ROUND, sum_lanes};
use crate::matrix::{Q8Matrix, rows_of, rows_of_mut};
use crate::panel::Panel;

/// [`scalar::quantize`], widened for SMLAD: of each four values, the first and the third share a word, then the second and
/// the fourth, as SXTB16 unpacks weights.
pub(super) fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    let Ok(q) = bytemuck::try_cast_slice_mut::<i8, [u32; 2]>(q) else { return };
    for ((x, q), s) in rows_of(x, group_size).zip(rows_of_mut(q, group_size / 4)).zip(s) {
        let factor = scalar::group_scale(x, s);
        let (x, _) = x.as_chunks::<4>();
        if !x.is_empty() && x.len() == q.len() {
            // SAFETY: both have as many elements, and some.
            unsafe { round_and_widen(x, factor, q) }
        }
    }
}

/// # Safety
/// x and q have the same length, which is not 0.
unsafe fn round_and_widen(x: &[[f32; 4]], factor: f32, q: &mut [[u32; 2]]) {
    // SAFETY: reads x, writes q.
    unsafe {
        asm!(
            with_dsp!(),
            "vmov s4, s5, {factor}, {round}",
            "2:",
            "vldmia {x}!, {{s0-s3}}",
            "vmul.f32 s0, s0, s4",
            "vmul.f32 s1, s1, s4",
            "vmul.f32 s2, s2, s4",
            "vmul.f32 s3, s3, s4",
            "vadd.f32 s0, s0, s5", // the integer stands in the low bits
            "vadd.f32 s1, s1, s5",
            "vadd.f32 s2, s2, s5",
            "vadd.f32 s3, s3, s5",
            "vmov {a}, {b}, s0, s1",
            "vmov {c}, {d}, s2, s3",
            "pkhbt {a}, {a}, {c}, lsl #16",
            "pkhbt {b}, {b}, {d}, lsl #16",
            "strd {a}, {b}, [{q}], #8",
            "subs {n}, {n}, #1",
            "bne.w 2b",
            x = inout(reg) x.as_ptr() => _,
            q = inout(reg) q.as_mut_ptr() => _,
            n = inout(reg) x.len() => _,
            factor = in(reg) factor,
            round = in(reg) ROUND,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _,
            options(nostack),
        );
    }
}

pub(super) fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let Ok(x) = bytemuck::try_cast_slice::<i8, [i16; 4]>(x) else { return };
    let (cols, group_size) = (w.cols, w.group_size);
    let groups = cols.checked_div(group_size).unwrap_or(0);
    for (b, (x, xs)) in rows_of(x, cols / 4).zip(rows_of(xs, groups)).enumerate() {
        let out = out.row(b);
        let whole = group_size.is_multiple_of(16) && w.q.len() >= out.len() * cols && w.s.len() >= out.len() * groups;
        let (pairs, rest) = if whole { out.as_chunks_mut::<2>() } else { (&mut [][..], out) };
        let done = 2 * pairs.len();
        if let ([xs], false) = (xs, pairs.is_empty()) {
            let sums = bytemuck::cast_slice_mut(&mut *pairs);
            // Sums of groups stand in the place of outputs until they are scaled.
            let rows = Advance { x: -2 * cols as isize, w: cols };
            // SAFETY: there are two rows of weights for each pair, of one group.
            unsafe { group_sums(w.q.as_ptr(), cols, x.as_ptr(), group_size, rows, sums) }
            scale(pairs.as_flattened_mut(), w.s, *xs);
        } else {
            let scales = rows_of(w.s, 2 * groups);
            for ((out, w), ws) in pairs.iter_mut().zip(rows_of(w.q, 2 * cols)).zip(scales) {
                // SAFETY: there are two rows of weights.
                *out = unsafe { dot_pair(w, ws, x, xs, group_size) };
            }
        }
        let rows = rows_of(w.q, cols).zip(rows_of(w.s, groups)).skip(done);
        for (out, (q, s)) in rest.iter_mut().zip(rows) {
            *out = dot_q8(q, s, x, xs, group_size);
        }
    }
}

/// Two rows of several groups.
///
/// # Safety
/// `w` holds two rows as wide as x, of `xs.len()` groups, whose size is a multiple of 16, and `ws` their scales.
unsafe fn dot_pair(w: &[i8], ws: &[f32], x: &[[i16; 4]], xs: &[f32], group_size: usize) -> [f32; 2] {
    let cols = w.len() / 2;
    let (ws0, ws1) = ws.split_at_checked(xs.len()).unwrap_or_default();
    let mut lanes = [[0.0; LANES]; 2];
    let parts = xs.chunks(LANES).zip(ws0.chunks(LANES).zip(ws1.chunks(LANES)));
    for (part, (xs, (ws0, ws1))) in parts.enumerate() {
        let mut sums = [[0; 2]; LANES];
        let Some(sums) = sums.get_mut(..xs.len()) else { break };
        let first = part * LANES * group_size;
        let (w, x) = (w.as_ptr().wrapping_add(first), x.as_ptr().wrapping_add(first / 4));
        // SAFETY: as many groups as xs are left in both rows and in x.
        unsafe { group_sums(w, cols, x, group_size, Advance { x: 0, w: 0 }, sums) }
        let [lanes0, lanes1] = &mut lanes;
        let lanes = lanes0.iter_mut().zip(lanes1);
        for ((((lane0, lane1), sums), xs), (ws0, ws1)) in lanes.zip(sums).zip(xs).zip(ws0.iter().zip(ws1)) {
            *lane0 += (sums[0] as f32 * ws0) * xs;
            *lane1 += (sums[1] as f32 * ws1) * xs;
        }
    }
    lanes.map(sum_lanes)
}

/// One row, of any group size.
fn dot_q8(w: &[i8], ws: &[f32], x: &[[i16; 4]], xs: &[f32], group_size: usize) -> f32 {
    let mut lanes = [0.0; LANES];
    let groups = rows_of(w, group_size).zip(rows_of(x, group_size / 4)).zip(ws.iter().zip(xs));
    for (g, ((w, x), (ws, xs))) in groups.enumerate() {
        let mut sum = 0;
        for (w, x) in w.as_chunks::<4>().0.iter().zip(x) {
            let x = [x[0], x[2], x[1], x[3]];
            sum += w.iter().zip(x).map(|(&w, x)| i32::from(w) * i32::from(x)).sum::<i32>();
        }
        lanes[g % LANES] += (sum as f32 * ws) * xs;
    }
    sum_lanes(lanes)
}

/// Where to go from the end of a group, in bytes.
struct Advance {
    x: isize,
    w: usize,
}

/// Sums of the products of groups of x with those of two rows of weights, the second one `cols` behind the first.
///
/// # Safety
/// `sums` is not empty; `w` and `x`, multiples of 4, point to as many groups, as `next` leads from one to the next. Their size
/// is a positive multiple of 16.
unsafe fn group_sums(
    w: *const i8,
    cols: usize,
    x: *const [i16; 4],
    group_size: usize,
    next: Advance,
    sums: &mut [[i32; 2]],
) {
    /// Sixteen columns that a pass through the loop takes, and the bytes of code for each.
    const UNROLLED: usize = 4;
    const CODE_BYTES: usize = 2 * 19 * 4;
    let steps = group_size / 16;
    let out = sums.as_mut_ptr_range();
    // For s0 to s7, as core registers are few.
    let outer = [
        0,
        0,
        (steps.next_multiple_of(UNROLLED) - steps) * CODE_BYTES,
        steps.div_ceil(UNROLLED),
        out.start as usize,
        out.end as usize,
        next.x as usize,
        next.w,
    ];
    macro_rules! eight_columns {
        () => {
            "ldmia.w {x}!, {{r2-r5}}
            ldrd {a}, {b}, [{w0}], #8
            sxtb16 {t}, {a}
            sxtb16 {a}, {a}, ror #8
            smlad {sum0}, {t}, r2, {sum0}
            smlad {sum0}, {a}, r3, {sum0}
            sxtb16 {t}, {b}
            sxtb16 {a}, {b}, ror #8
            smlad {sum0}, {t}, r4, {sum0}
            smlad {sum0}, {a}, r5, {sum0}
            ldrd {a}, {b}, [{w1}], #8
            sxtb16 {t}, {a}
            sxtb16 {a}, {a}, ror #8
            smlad {sum1}, {t}, r2, {sum1}
            smlad {sum1}, {a}, r3, {sum1}
            sxtb16 {t}, {b}
            sxtb16 {a}, {b}, ror #8
            smlad {sum1}, {t}, r4, {sum1}
            smlad {sum1}, {a}, r5, {sum1}"
        };
    }
    // SAFETY: reads what the caller vouches for, and writes sums.
    unsafe {
        asm!(
            with_dsp!(),
            "vldmia {a}, {{s0-s7}}",
            "vmov {a}, s2",
            "adr.w {t}, 3f", // the first pass starts where what is left makes whole passes
            "add {t}, {t}, {a}",
            "vmov s2, {t}",
            "2:",
            "vmov {sum0}, {sum1}, s0, s1",
            "vmov {t}, {n}, s2, s3",
            "mov pc, {t}",
            "3:",
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            "subs {n}, {n}, #1",
            "bne.w 3b",
            "vmov {a}, {b}, s4, s5",
            "strd {sum0}, {sum1}, [{a}], #8",
            "vmov s4, {a}",
            "cmp {a}, {b}",
            "vmov {a}, {b}, s6, s7",
            "add {x}, {a}",
            "add {w0}, {b}",
            "add {w1}, {b}",
            "bne.w 2b",
            w0 = inout(reg) w => _,
            w1 = inout(reg) w.wrapping_add(cols) => _,
            x = inout(reg) x => _,
            n = out(reg) _,
            a = inout(reg) outer.as_ptr() => _,
            b = out(reg) _,
            t = out(reg) _,
            sum0 = out(reg) _,
            sum1 = out(reg) _,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            options(nostack),
        );
    }
}

/// Integer sums, whose bits stand in for those of the outputs, times the scales of weights and of x. Adding 0 is what adding
/// up the other lanes, all 0, comes to.
fn scale(sums: &mut [f32], ws: &[f32], xs: f32) {
    let (blocks, rest) = sums.as_chunks_mut::<LANES>();
    let (scales, scales_rest) = ws.split_at_checked(blocks.len() * LANES).unwrap_or_default();
    if !blocks.is_empty() && !scales.is_empty() {
        // SAFETY: blocks is not empty, and there are as many scales.
        unsafe { scale_blocks(blocks, scales.as_ptr(), xs) }
    }
    for (sum, ws) in rest.iter_mut().zip(scales_rest) {
        *sum = (sum.to_bits() as i32 as f32 * ws) * xs + 0.0;
    }
}

/// # Safety
/// `blocks` is not empty, and `ws` points to as many numbers.
unsafe fn scale_blocks(blocks: &mut [[f32; LANES]], ws: *const f32, xs: f32) {
    // SAFETY: reads and writes blocks, reads ws.
    unsafe {
        asm!(
            "vmov s16, s17, {xs}, {zero}",
            "2:",
            "vldmia {blocks}, {{s0-s7}}",
            "vldmia {ws}!, {{s8-s15}}",
            "vcvt.f32.s32 s0, s0",
            "vcvt.f32.s32 s1, s1",
            "vcvt.f32.s32 s2, s2",
            "vcvt.f32.s32 s3, s3",
            "vcvt.f32.s32 s4, s4",
            "vcvt.f32.s32 s5, s5",
            "vcvt.f32.s32 s6, s6",
            "vcvt.f32.s32 s7, s7",
            "vmul.f32 s0, s0, s8",
            "vmul.f32 s1, s1, s9",
            "vmul.f32 s2, s2, s10",
            "vmul.f32 s3, s3, s11",
            "vmul.f32 s4, s4, s12",
            "vmul.f32 s5, s5, s13",
            "vmul.f32 s6, s6, s14",
            "vmul.f32 s7, s7, s15",
            "vmul.f32 s0, s0, s16",
            "vmul.f32 s1, s1, s16",
            "vmul.f32 s2, s2, s16",
            "vmul.f32 s3, s3, s16",
            "vmul.f32 s4, s4, s16",
            "vmul.f32 s5, s5, s16",
            "vmul.f32 s6, s6, s16",
            "vmul.f32 s7, s7, s16",
            "vadd.f32 s0, s0, s17",
            "vadd.f32 s1, s1, s17",
            "vadd.f32 s2, s2, s17",
            "vadd.f32 s3, s3, s17",
            "vadd.f32 s4, s4, s17",
            "vadd.f32 s5, s5, s17",
            "vadd.f32 s6, s6, s17",
            "vadd.f32 s7, s7, s17",
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
