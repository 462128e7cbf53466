//! Matrix products: one instruction multiplies four floats, or sixteen int8 numbers and sums them
//! up.

use core::arch::asm;

use super::asm::exact;
use crate::kernels::cortex_m::asm::sum_four_lanes;
use crate::kernels::{cortex_m, scalar};
use crate::math::{LANES, dot, dot_q8};
use crate::matrix::{Q8Matrix, rows_of};
use crate::panel::Panel;

pub(super) fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    let rows = |out: &mut Panel<'_>| {
        for (b, x) in rows_of(x, cols).enumerate() {
            let (pairs, last) = out.row(b).as_chunks_mut::<2>();
            let Some((w, w_last)) = w.split_at_checked(2 * pairs.len() * cols) else { return };
            // SAFETY: `w` was cut to two rows of `cols` weights for each pair, and `x` has `cols`
            // numbers, a multiple of four.
            unsafe { dot_rows(w, x, pairs) }
            last.iter_mut().zip(rows_of(w_last, cols)).for_each(|(out, w)| *out = dot(w, x));
        }
    };
    if !cols.is_multiple_of(4) || !exact(|| rows(out)) {
        (cortex_m::FPU.matmul_f32)(w, cols, x, out);
    }
}

/// [`dot`] of x with pairs of rows.
///
/// # Safety
/// The core has Helium. `w` has `2 · out.len()` rows as long as `x`, whose length is a multiple of
/// 4.
unsafe fn dot_rows(w: &[f32], x: &[f32], out: &mut [[f32; 2]]) {
    // SAFETY: the loop runs once for each pair of `out`, maybe never, and reads `x` and two rows of
    // `w`, for which the caller vouches: in chunks of eight numbers, and a last one of four if
    // `x.len() % 8` is 4.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "b 6f",
            "2:",
            "vmov.i32 q4, #0", // lanes of one row
            "vmov.i32 q5, #0",
            "vmov.i32 q6, #0", // and of the next
            "vmov.i32 q7, #0",
            "add {w1}, {w}, {row_bytes}",
            "mov {xp}, {x}",
            "wls lr, {chunks}, 4f",
            "3:",
            "vldrw.u32 q0, [{xp}], #16",
            "vldrw.u32 q1, [{xp}], #16",
            "vldrw.u32 q2, [{w}], #16",
            "vldrw.u32 q3, [{w}], #16",
            "vmul.f32 q2, q2, q0",
            "vmul.f32 q3, q3, q1",
            "vadd.f32 q4, q4, q2",
            "vadd.f32 q5, q5, q3",
            "vldrw.u32 q2, [{w1}], #16",
            "vldrw.u32 q3, [{w1}], #16",
            "vmul.f32 q2, q2, q0",
            "vmul.f32 q3, q3, q1",
            "vadd.f32 q6, q6, q2",
            "vadd.f32 q7, q7, q3",
            "le lr, 3b",
            "4:",
            "cmp {half}, #0",
            "beq 5f",
            "vldrw.u32 q0, [{xp}]",
            "vldrw.u32 q2, [{w}]",
            "vldrw.u32 q3, [{w1}], #16",
            "vmul.f32 q2, q2, q0",
            "vmul.f32 q3, q3, q0",
            "vadd.f32 q4, q4, q2",
            "vadd.f32 q6, q6, q3",
            "5:", // sum_lanes
            "vadd.f32 q4, q4, q5",
            "vadd.f32 q6, q6, q7",
            sum_four_lanes!(),
            "vstmia {out}!, {{s16-s17}}",
            "mov {w}, {w1}",
            "6:",
            "subs {pairs}, {pairs}, #1",
            "bpl 2b",
            w = inout(reg) w.as_ptr() => _,
            w1 = out(reg) _,
            row_bytes = in(reg) size_of_val(x),
            x = in(reg) x.as_ptr(),
            xp = out(reg) _,
            chunks = in(reg) x.len() / LANES,
            half = in(reg) x.len() % LANES,
            out = inout(reg) out.as_mut_ptr() => _,
            pairs = inout(reg) out.len() => _,
            out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _,
            out("d15") _,
            options(nostack),
        );
    }
}

/// Rows with integer sums that become floats together, in one register.
const ROWS: usize = 4;
/// Rows that have their lanes in memory at a time, if there are several groups.
const BLOCK: usize = 4 * ROWS;

/// The int8 product for groups that fit the registers; others are rare, as quantisers make 64 and
/// its divisors.
pub(super) fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let add_group: Option<AddGroup> = match w.group_size {
        16 => Some(add_group::<1>),
        32 => Some(add_group::<2>),
        64 => Some(add_group::<4>),
        _ => None,
    };
    // The products of very small scales are subnormal.
    if !add_group.is_some_and(|add_group| exact(|| matmul_groups(add_group, w, x, xs, out))) {
        scalar::matmul_q8(w, x, xs, out);
    }
}

/// The type of [`add_group`].
type AddGroup = unsafe fn(w: &Q8Matrix<'_>, row: usize, g: usize, x: &[i8], xs: f32, sums: &mut [[f32; ROWS]]);

#[inline(always)]
fn matmul_groups(add_group: AddGroup, w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let groups = w.cols / w.group_size.max(1);
    for (b, (x, xs)) in rows_of(x, w.cols).zip(rows_of(xs, groups)).enumerate() {
        let out = out.row(b);
        if w.q.len() < out.len() * w.cols || w.s.len() < out.len() * groups {
            return;
        }
        let (blocks, rest) = out.as_chunks_mut::<ROWS>();
        let done = ROWS * blocks.len();
        if let [xs] = xs {
            clear(blocks);
            // SAFETY: `w` has as many rows as `out` has outputs, as checked above, and their one
            // group is as long as `x`.
            unsafe { add_group(w, 0, 0, x, *xs, blocks) }
        } else {
            let mut lanes = [[[0.0; ROWS]; BLOCK / ROWS]; LANES];
            for (i, blocks) in blocks.chunks_mut(BLOCK / ROWS).enumerate() {
                clear(lanes.as_flattened_mut());
                for (g, (x, xs)) in rows_of(x, w.group_size).zip(xs).enumerate() {
                    let Some(lane) = lanes[g % LANES].get_mut(..blocks.len()) else { continue };
                    // SAFETY: `w` has as many rows as `out` has outputs, as checked above, hence
                    // these from row BLOCK · i on; `x` and each row have group g.
                    unsafe { add_group(w, BLOCK * i, g, x, *xs, lane) }
                }
                sum_blocks(&lanes, blocks);
            }
        }
        let rows = rows_of(w.q, w.cols).zip(rows_of(w.s, groups)).skip(done);
        for (out, (q, s)) in rest.iter_mut().zip(rows) {
            *out = dot_q8(q, s, x, xs, w.group_size);
        }
    }
}

/// Writes zeros. (A slice's `fill` is a call that takes an instruction per byte.)
#[inline(always)]
fn clear(sums: &mut [[f32; ROWS]]) {
    // SAFETY: the loop writes the `sums.len()` elements of `sums`, maybe none.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "vmov.i32 q0, #0",
            "wls lr, lr, 3f",
            "2:",
            "vstrw.u32 q0, [{sums}], #16",
            "le lr, 2b",
            "3:",
            sums = inout(reg) sums.as_mut_ptr() => _,
            inout("lr") sums.len() => _,
            out("d0") _, out("d1") _,
            options(nostack),
        );
    }
}

/// Puts [`sum_lanes`](crate::math::sum_lanes) of the first rows of a block into `out`.
fn sum_blocks(lanes: &[[[f32; ROWS]; BLOCK / ROWS]; LANES], out: &mut [[f32; ROWS]]) {
    // SAFETY: the loop writes at most BLOCK / ROWS elements of `out`, maybe none, and reads as many
    // of each of the eight lanes.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "wls lr, lr, 3f",
            "2:",
            "vldrw.u32 q0, [{lanes}]",
            "vldrw.u32 q1, [{lanes}, #4*{lane}]",
            "vldrw.u32 q2, [{lanes}, #2*{lane}]",
            "vldrw.u32 q3, [{lanes}, #6*{lane}]",
            "vadd.f32 q0, q0, q1",
            "vadd.f32 q2, q2, q3",
            "vadd.f32 q0, q0, q2",
            "vldrw.u32 q1, [{lanes}, #1*{lane}]",
            "vldrw.u32 q2, [{lanes}, #5*{lane}]",
            "vldrw.u32 q3, [{lanes}, #3*{lane}]",
            "vadd.f32 q1, q1, q2",
            "vldrw.u32 q2, [{lanes}, #7*{lane}]",
            "vadd.f32 q3, q3, q2",
            "vadd.f32 q1, q1, q3",
            "vadd.f32 q0, q0, q1",
            "vstrw.u32 q0, [{out}], #16",
            "add {lanes}, {lanes}, #16",
            "le lr, 2b",
            "3:",
            lane = const size_of::<[f32; BLOCK]>(),
            lanes = inout(reg) lanes.as_ptr() => _,
            out = inout(reg) out.as_mut_ptr() => _,
            inout("lr") out.len().min(BLOCK / ROWS) => _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            options(nostack),
        );
    }
}

/// Sums up the products of one row with x, in q0 to q3, and moves on to the next row.
#[rustfmt::skip] // an instruction per line
macro_rules! row {
    ($sum:literal) => {
        concat!(
            "vldrb.u8 q4, [{w}], #16\n",
            "vmladav.s8 ", $sum, ", q0, q4\n",
            ".if {chunks} > 1\n",
            "vldrb.u8 q4, [{w}], #16\n",
            "vmladava.s8 ", $sum, ", q1, q4\n",
            ".endif\n",
            ".if {chunks} > 2\n",
            "vldrb.u8 q4, [{w}], #16\n",
            "vmladava.s8 ", $sum, ", q2, q4\n",
            "vldrb.u8 q4, [{w}], #16\n",
            "vmladava.s8 ", $sum, ", q3, q4\n",
            ".endif\n",
            "add {w}, {w}, {skip}",
        )
    };
}

/// Adds the contribution of group `g`, of `16 · CHUNKS` columns, to the sums of `4 · sums.len()`
/// rows from `row` on. x stays in registers meanwhile.
///
/// # Safety
/// The core has Helium. The group size is `16 · CHUNKS`, and `x` is as long. `w` has `4 ·
/// sums.len()` rows from `row` on, and each of them a group `g` with its scale.
unsafe fn add_group<const CHUNKS: usize>(
    w: &Q8Matrix<'_>,
    row: usize,
    g: usize,
    x: &[i8],
    xs: f32,
    sums: &mut [[f32; ROWS]],
) {
    let groups = w.cols / (16 * CHUNKS);
    // SAFETY: the loop runs once for each element of `sums`, maybe never, and reads group `g` of
    // four rows and their scales, for which the caller vouches; `x` is read once.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "vldrb.u8 q0, [r0]",
            ".if {chunks} > 1",
            "vldrb.u8 q1, [r0, #16]",
            ".endif",
            ".if {chunks} > 2",
            "vldrb.u8 q2, [r0, #32]",
            "vldrb.u8 q3, [r0, #48]",
            ".endif",
            "mov r0, #0",
            "vidup.u32 q6, r0, #1",
            "vmul.i32 q6, q6, r2", // where the scales of four rows are
            "wls lr, lr, 3f",
            "2:",
            row!("r0"),
            row!("r2"),
            row!("r4"),
            row!("r8"),
            "vmov d8, r0, r2",
            "vmov d9, r4, r8",
            "vldrw.u32 q5, [{s}, q6, uxtw #2]",
            "add {s}, {s}, {four_rows}",
            "vcvt.f32.s32 q4, q4",
            "vmul.f32 q4, q4, q5",
            "vmul.f32 q4, q4, {xs}",
            "vldrw.u32 q5, [{sums}]",
            "vadd.f32 q5, q5, q4",
            "vstrw.u32 q5, [{sums}], #16",
            "le lr, 2b",
            "3:",
            chunks = const CHUNKS,
            w = inout(reg) w.q.as_ptr().wrapping_add(row * w.cols + g * 16 * CHUNKS) => _,
            skip = in(reg) w.cols - 16 * CHUNKS,
            s = inout(reg) w.s.as_ptr().wrapping_add(row * groups + g) => _,
            four_rows = in(reg) ROWS * groups * size_of::<f32>(),
            xs = in(reg) xs,
            sums = inout(reg) sums.as_mut_ptr() => _,
            inout("r0") x.as_ptr() => _,
            inout("r2") groups => _,
            out("r4") _,
            out("r8") _,
            inout("lr") sums.len() => _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _,
            options(nostack),
        );
    }
}
