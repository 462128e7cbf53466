//! Int8 products for Helium, the vector extension of Cortex-M55 and M85: sixteen products and their sum are one
//! instruction. Integers only, since Helium flushes subnormal floats.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Kernels, cortex_m, scalar};
use crate::math::{LANES, sum_lanes};
use crate::matrix::{Q8Matrix, rows_of};
use crate::panel::Panel;

/// The kernels of a Cortex-M with FPU and Helium, which implies the DSP extension.
pub(crate) const HELIUM: Kernels =
    Kernels { name: "helium", matmul_q8, attend_q8: cortex_m::attend_q8, ..cortex_m::FPU };

/// Rows that share each load of x.
const ROWS: usize = 4;

fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    let (cols, group_size) = (w.cols, w.group_size);
    let groups = cols.checked_div(group_size).unwrap_or(0);
    for (b, (x, xs)) in rows_of(x, cols).zip(rows_of(xs, groups)).enumerate() {
        let out = out.row(b);
        let whole = group_size.is_multiple_of(16) && w.q.len() >= out.len() * cols && w.s.len() >= out.len() * groups;
        let (blocks, rest) = if whole { out.as_chunks_mut::<ROWS>() } else { (&mut [][..], out) };
        // SAFETY: there are four rows of weights and scales for each block, and groups of a multiple of 16. Whoever chose these
        // kernels vouches for Helium.
        unsafe { dot_q8_blocks(w.q.as_ptr(), w.s.as_ptr(), x, xs, group_size, blocks) }
        let rows = rows_of(w.q, cols).zip(rows_of(w.s, groups)).skip(ROWS * blocks.len());
        for (out, (q, s)) in rest.iter_mut().zip(rows) {
            *out = scalar::dot_q8(q, s, x, xs, group_size);
        }
    }
}

/// Four rows at once.
///
/// # Safety
/// The core has Helium. `w` points to `4 · out.len()` rows as wide as x, `s` to as many rows of `xs.len()` scales. x has `xs.len()`
/// groups, whose size is a positive multiple of 16.
unsafe fn dot_q8_blocks(
    mut w: *const i8,
    mut s: *const f32,
    x: &[i8],
    xs: &[f32],
    group_size: usize,
    out: &mut [[f32; ROWS]],
) {
    let (cols, groups, steps) = (x.len(), xs.len(), group_size / 16);
    for out in out {
        let mut rows = [0, 1, 2, 3].map(|row| w.wrapping_add(row * cols));
        let mut x = x.as_ptr();
        let mut contributions = |g: usize, xs: f32| {
            // SAFETY: a group of each row and of x, and its scales.
            unsafe {
                let [a, b, c, d] = group_sums(&mut rows, &mut x, steps);
                let scale = |row: usize| *s.wrapping_add(row * groups + g);
                [(a, 0), (b, 1), (c, 2), (d, 3)].map(|(sum, row)| (sum as f32 * scale(row)) * xs)
            }
        };
        if let [xs] = xs {
            *out = contributions(0, *xs).map(|sum| sum + 0.0); // all other lanes are 0
        } else {
            let mut lanes = [[0.0; LANES]; ROWS];
            for (g, xs) in xs.iter().enumerate() {
                for (lanes, sum) in lanes.iter_mut().zip(contributions(g, *xs)) {
                    lanes[g % LANES] += sum;
                }
            }
            *out = lanes.map(sum_lanes);
        }
        w = w.wrapping_add(ROWS * cols);
        s = s.wrapping_add(ROWS * groups);
    }
}

/// Sums of the products of a group of x and of four rows; the pointers move on to the next group.
///
/// # Safety
/// The core has Helium, and all pointers point to `16 · n` values, n >= 1.
#[inline(always)]
unsafe fn group_sums([w0, w1, w2, w3]: &mut [*const i8; ROWS], x: &mut *const i8, n: usize) -> [i32; ROWS] {
    let mut sums = [0; ROWS];
    // SAFETY: reads what the caller vouches for.
    unsafe {
        asm!(
            ".cpu cortex-m55", // for the assembler, as the target has no Helium
            "2:",
            "vldrb.u8 q0, [{x}], #16",
            "vldrb.u8 q1, [{w0}], #16",
            "vmladava.s8 r0, q0, q1",
            "vldrb.u8 q2, [{w1}], #16",
            "vmladava.s8 r2, q0, q2",
            "vldrb.u8 q3, [{w2}], #16",
            "vmladava.s8 r4, q0, q3",
            "vldrb.u8 q4, [{w3}], #16",
            "vmladava.s8 r8, q0, q4",
            "subs {n}, {n}, #1",
            "bne 2b",
            w0 = inout(reg) *w0,
            w1 = inout(reg) *w1,
            w2 = inout(reg) *w2,
            w3 = inout(reg) *w3,
            x = inout(reg) *x,
            n = inout(reg) n => _,
            inout("r0") sums[0],
            inout("r2") sums[1],
            inout("r4") sums[2],
            inout("r8") sums[3],
            out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _, out("s12") _, out("s13") _, out("s14") _,
            out("s15") _, out("s16") _, out("s17") _, out("s18") _, out("s19") _,
            options(nostack, readonly),
        );
    }
    sums
}
