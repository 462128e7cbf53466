//! The f32 matrix product.

use core::arch::asm;

use super::asm::{eight, sum_lanes};
use crate::kernels::scalar;
use crate::math::LANES;
use crate::panel::Panel;

pub(super) fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    if cols < 2 * LANES || !cols.is_multiple_of(4) {
        return scalar::matmul_f32(w, cols, x, out);
    }
    for (b, x) in x.chunks_exact(cols).enumerate() {
        let out = out.row(b);
        let (pairs, last) = out.as_chunks_mut::<2>();
        let Some((w, w_last)) = w.split_at_checked(2 * pairs.len() * cols) else { return };
        if !pairs.is_empty() {
            // SAFETY: `w` has two rows of `cols` weights for each pair, and `x` has `cols` numbers,
            // a multiple of four and at least sixteen; `pairs` is not empty.
            unsafe { dot_rows(w.as_ptr(), x, pairs) }
        }
        for (out, w) in last.iter_mut().zip(w_last.chunks_exact(cols)) {
            *out = crate::math::dot(w, x);
        }
    }
}

/// Adds the products of eight columns to the lanes of both rows.
macro_rules! eight_columns {
    () => {
        concat!(
            "vldmia {xp}!, {{s0-s7}}\n",
            "vldmia {w}!, {{s8-s15}}\n",
            eight!("vmul.f32", s8, s0),
            "\n",
            eight!("vadd.f32", s16, s8),
            "\n",
            "vldmia {w1}!, {{s8-s15}}\n",
            eight!("vmul.f32", s8, s0),
            "\n",
            eight!("vadd.f32", s24, s8),
        )
    };
}

/// Adds the products of the last four columns to the first four lanes of both rows.
macro_rules! four_columns {
    () => {
        "vldmia {xp}, {{s0-s3}}
        vldmia {w}!, {{s8-s11}}
        vldmia {w1}!, {{s12-s15}}
        vmul.f32 s8, s8, s0
        vmul.f32 s9, s9, s1
        vmul.f32 s10, s10, s2
        vmul.f32 s11, s11, s3
        vmul.f32 s12, s12, s0
        vmul.f32 s13, s13, s1
        vmul.f32 s14, s14, s2
        vmul.f32 s15, s15, s3
        vadd.f32 s16, s16, s8
        vadd.f32 s17, s17, s9
        vadd.f32 s18, s18, s10
        vadd.f32 s19, s19, s11
        vadd.f32 s24, s24, s12
        vadd.f32 s25, s25, s13
        vadd.f32 s26, s26, s14
        vadd.f32 s27, s27, s15"
    };
}

/// [`dot`](crate::math::dot) of x with pairs of rows. The first product of a lane is not added to
/// 0. That changes nothing but the sign of a zero, and 0 is added to the sum of the lanes instead.
///
/// # Safety
/// `w` points to `2 · out.len()` rows of `x.len()` numbers, a multiple of four and at least
/// sixteen. `out` is not empty.
unsafe fn dot_rows(w: *const f32, x: &[f32], out: &mut [[f32; 2]]) {
    /// Chunks of eight columns that a pass through the loop takes.
    const UNROLLED: usize = 8;
    /// Bytes of code for each chunk: 35 instructions, which the assembler checks.
    const CODE_BYTES: usize = 35 * 4;
    let chunks = x.len() / LANES - 1;
    // SAFETY: `out` is not empty. Each of its pairs reads the `x.len()` numbers of x and two rows
    // of as many weights, in chunks of eight and, if `x.len() % 8` is 4, a last one of four; there
    // are two chunks at least. The entry is the start of a chunk's code: CODE_BYTES is checked
    // below.
    unsafe {
        asm!(
            // ADR counts from its own address rounded down to a multiple of four, and a function
            // may lie at any even address: without the alignment the label would be two bytes off
            // at every second address.
            ".p2align 2",
            "adr.w {entry}, 3f", // the first pass starts late, so that whole passes are left
            "add {entry}, {entry}, {skip}",
            "2:",
            "add {w1}, {w}, {stride}",
            "mov {xp}, {x}",
            "mov {n}, {passes}",
            "vldmia {xp}!, {{s0-s7}}",
            "vldmia {w}!, {{s16-s23}}", // become the lanes of row 0
            eight!("vmul.f32", s16, s0),
            "vldmia {w1}!, {{s24-s31}}", // and of row 1
            eight!("vmul.f32", s24, s0),
            "mov pc, {entry}",
            "3:",
            eight_columns!(),
            "5:",
            ".if 5b - 3b != {code_bytes}",
            ".error \"CODE_BYTES is not the size of the code for a chunk\"",
            ".endif",
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            eight_columns!(),
            ".if . - 3b != {unrolled} * {code_bytes}",
            ".error \"UNROLLED is not the number of chunks in a pass\"",
            ".endif",
            "subs {n}, {n}, #1",
            "bne.w 3b",
            "cbz r0, 4f",
            four_columns!(),
            "4:",
            "vmov s0, {n}", // 0
            sum_lanes!(),
            "vadd.f32 s16, s16, s0",
            "vadd.f32 s17, s17, s0",
            "vstmia {out}!, {{s16-s17}}",
            "mov {w}, {w1}",
            "subs {pairs}, {pairs}, #1",
            "bne.w 2b",
            code_bytes = const CODE_BYTES,
            unrolled = const UNROLLED,
            entry = out(reg) _,
            skip = in(reg) (chunks.next_multiple_of(UNROLLED) - chunks) * CODE_BYTES,
            w = inout(reg) w => _,
            w1 = out(reg) _,
            stride = in(reg) size_of_val(x),
            x = in(reg) x.as_ptr(),
            xp = out(reg) _,
            n = out(reg) _,
            passes = in(reg) chunks.div_ceil(UNROLLED),
            in("r0") x.len() % LANES,
            out = inout(reg) out.as_mut_ptr() => _,
            pairs = inout(reg) out.len() => _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _, out("s17") _, out("s18") _, out("s19") _, out("s20") _, out("s21") _,
            out("s22") _, out("s23") _, out("s24") _, out("s25") _, out("s26") _, out("s27") _, out("s28") _,
            out("s29") _, out("s30") _, out("s31") _,
            options(nostack),
        );
    }
}
