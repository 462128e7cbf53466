//! Kernels for Cortex-M with a single-precision FPU, and int8 products for its DSP extension.
//!
//! Two rows share each load of x, and whole vectors are loaded by one instruction. A product and its sum are two
//! instructions (VMUL, VADD) of one cycle each: VMLA would be one, but of three cycles.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Heads, Kernels, scalar};
use crate::config::block_len;
use crate::math::{LANES, exp2_score, sum};
use crate::panel::Panel;

/// The kernels of a Cortex-M with FPU.
pub(crate) const FPU: Kernels = Kernels { name: "cortex-m", matmul_f32, attend, ..Kernels::scalar() };

/// Positions scored at a time: their sums stay in registers.
const POSITIONS: usize = 4;

fn attend(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]) {
    let head_size = heads.head_size;
    if head_size == 0 || !head_size.is_multiple_of(LANES) || heads.positions == 0 {
        return scalar::attend(heads, att, out);
    }
    let mut q = heads.q.chunks_exact(head_size);
    let mut att = att.chunks_exact_mut(block_len(heads.positions));
    let mut out = out.chunks_exact_mut(head_size);
    while let (Some(q0), Some(att0), Some(out0)) = (q.next(), att.next(), out.next()) {
        let sum0 = weights(q0, heads, att0);
        if let (Some(q1), Some(att1), Some(out1)) = (q.next(), att.next(), out.next()) {
            let sum1 = weights(q1, heads, att1);
            scalar::weigh([att0, att1], [sum0, sum1], heads, [out0, out1]);
        } else {
            scalar::weigh([att0], [sum0], heads, [out0]);
        }
    }
}

#[inline(always)]
fn weights(q: &[f32], heads: &Heads<'_>, att: &mut [f32]) -> f32 {
    for (keys, att) in heads.keys.chunks_exact(heads.head_size).zip(att.as_chunks_mut::<LANES>().0) {
        let (low, high) = att.split_at_mut(POSITIONS);
        scores::<0>(q, keys, heads.scale, low);
        scores::<POSITIONS>(q, keys, heads.scale, high);
    }
    let Some(att) = att.get_mut(..heads.positions) else { return 0.0 };
    let max = att.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    for x in att.iter_mut() {
        *x = exp2_score(*x - max);
    }
    sum(att)
}

#[inline(always)]
fn scores<const FIRST: usize>(q: &[f32], keys: &[[f32; LANES]], scale: f32, att: &mut [f32]) {
    let (q, _) = q.as_chunks::<LANES>();
    let (keys, _) = keys.as_chunks::<LANES>();
    let lane = |l: usize| {
        let mut sum = [0.0; POSITIONS];
        for (i, (q, keys)) in q.iter().zip(keys).enumerate() {
            for p in 0..POSITIONS {
                let product = q[l] * keys[l][FIRST + p];
                sum[p] = if i == 0 { product } else { sum[p] + product };
            }
        }
        sum
    };
    let add = |mut a: [f32; POSITIONS], b: [f32; POSITIONS]| {
        for p in 0..POSITIONS {
            a[p] += b[p];
        }
        a
    };
    let even = add(add(lane(0), lane(4)), add(lane(2), lane(6)));
    let odd = add(add(lane(1), lane(5)), add(lane(3), lane(7)));
    let total = add(even, odd);
    for (att, score) in att.iter_mut().zip(total) {
        *att = score * scale;
    }
}

fn matmul_f32(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>) {
    if cols < LANES || !cols.is_multiple_of(4) {
        return scalar::matmul_f32(w, cols, x, out);
    }
    for (b, x) in x.chunks_exact(cols).enumerate() {
        let out = out.row(b);
        let (pairs, last) = out.as_chunks_mut::<2>();
        let Some((w, w_last)) = w.split_at_checked(2 * pairs.len() * cols) else { return };
        if !pairs.is_empty() {
            // SAFETY: two rows of cols weights for each pair of outputs, and one row of x; cols is as required.
            unsafe { dot_rows(w.as_ptr(), x, pairs) }
        }
        for (out, w) in last.iter_mut().zip(w_last.chunks_exact(cols)) {
            *out = crate::math::dot(w, x);
        }
    }
}

/// [`dot`](crate::math::dot) of x with pairs of rows.
///
/// # Safety
/// `w` points to `2 · out.len()` rows of `x.len()` numbers, a multiple of four and at least eight. `out` is not empty.
unsafe fn dot_rows(w: *const f32, x: &[f32], out: &mut [[f32; 2]]) {
    static ZERO: [f32; 16] = [0.0; 16];
    // SAFETY: reads 2 · out.len() rows of weights, x and ZERO, writes out.
    unsafe {
        asm!(
            "2:",
            "vldmia {zero}, {{s16-s31}}", // lanes of both rows
            "add {w1}, {w}, {stride}",
            "mov {xp}, {x}",
            "mov {n}, {chunks}",
            "3:",
            "vldmia {xp}!, {{s0-s7}}",
            "vldmia {w}!, {{s8-s15}}",
            "vmul.f32 s8, s8, s0",
            "vmul.f32 s9, s9, s1",
            "vmul.f32 s10, s10, s2",
            "vmul.f32 s11, s11, s3",
            "vmul.f32 s12, s12, s4",
            "vmul.f32 s13, s13, s5",
            "vmul.f32 s14, s14, s6",
            "vmul.f32 s15, s15, s7",
            "vadd.f32 s16, s16, s8",
            "vadd.f32 s17, s17, s9",
            "vadd.f32 s18, s18, s10",
            "vadd.f32 s19, s19, s11",
            "vadd.f32 s20, s20, s12",
            "vadd.f32 s21, s21, s13",
            "vadd.f32 s22, s22, s14",
            "vadd.f32 s23, s23, s15",
            "vldmia {w1}!, {{s8-s15}}",
            "vmul.f32 s8, s8, s0",
            "vmul.f32 s9, s9, s1",
            "vmul.f32 s10, s10, s2",
            "vmul.f32 s11, s11, s3",
            "vmul.f32 s12, s12, s4",
            "vmul.f32 s13, s13, s5",
            "vmul.f32 s14, s14, s6",
            "vmul.f32 s15, s15, s7",
            "vadd.f32 s24, s24, s8",
            "vadd.f32 s25, s25, s9",
            "vadd.f32 s26, s26, s10",
            "vadd.f32 s27, s27, s11",
            "vadd.f32 s28, s28, s12",
            "vadd.f32 s29, s29, s13",
            "vadd.f32 s30, s30, s14",
            "vadd.f32 s31, s31, s15",
            "subs {n}, {n}, #1",
            "bne 3b",
            "cmp {tail}, #0",
            "beq 4f",
            "vldmia {xp}, {{s0-s3}}",
            "vldmia {w}!, {{s8-s11}}",
            "vldmia {w1}!, {{s12-s15}}",
            "vmul.f32 s8, s8, s0",
            "vmul.f32 s9, s9, s1",
            "vmul.f32 s10, s10, s2",
            "vmul.f32 s11, s11, s3",
            "vmul.f32 s12, s12, s0",
            "vmul.f32 s13, s13, s1",
            "vmul.f32 s14, s14, s2",
            "vmul.f32 s15, s15, s3",
            "vadd.f32 s16, s16, s8",
            "vadd.f32 s17, s17, s9",
            "vadd.f32 s18, s18, s10",
            "vadd.f32 s19, s19, s11",
            "vadd.f32 s24, s24, s12",
            "vadd.f32 s25, s25, s13",
            "vadd.f32 s26, s26, s14",
            "vadd.f32 s27, s27, s15",
            "4:", // sum_lanes
            "vadd.f32 s16, s16, s20",
            "vadd.f32 s17, s17, s21",
            "vadd.f32 s18, s18, s22",
            "vadd.f32 s19, s19, s23",
            "vadd.f32 s24, s24, s28",
            "vadd.f32 s25, s25, s29",
            "vadd.f32 s26, s26, s30",
            "vadd.f32 s27, s27, s31",
            "vadd.f32 s16, s16, s18",
            "vadd.f32 s17, s17, s19",
            "vadd.f32 s24, s24, s26",
            "vadd.f32 s25, s25, s27",
            "vadd.f32 s16, s16, s17",
            "vadd.f32 s17, s24, s25",
            "vstmia {out}!, {{s16-s17}}",
            "mov {w}, {w1}",
            "subs {pairs}, {pairs}, #1",
            "bne 2b",
            w = inout(reg) w => _,
            w1 = out(reg) _,
            stride = in(reg) size_of_val(x),
            x = in(reg) x.as_ptr(),
            xp = out(reg) _,
            n = out(reg) _,
            chunks = in(reg) x.len() / LANES,
            tail = in(reg) x.len() % LANES,
            zero = in(reg) ZERO.as_ptr(),
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
