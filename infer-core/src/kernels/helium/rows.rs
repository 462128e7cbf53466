//! Kernels over rows of numbers: quantising, norms and SwiGLU.

use core::arch::asm;

use super::asm::{VECTOR, exact, exp2, sum_lanes};
use crate::kernels::cortex_m::norm::{self, rms_scale};
use crate::math::{self, EXP2_G, ROUND};
use crate::matrix::{rows_of, rows_of_mut};
use crate::quant::factor_for;

/// [`quantize`](crate::quant::quantize) for groups of a multiple of four, as they all are. A
/// subnormal x times a scale of at most 127 · 2^100 is far below 1/2, so flushing it changes
/// nothing.
pub(super) fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    for ((x, q), s) in rows_of(x, group_size).zip(rows_of_mut(q, group_size)).zip(s) {
        let scale = factor_for(max_magnitude(x), s);
        // SAFETY: the loop reads `x.len() / 4` vectors of four numbers of `x` and writes as many
        // times four bytes of `q`, which is as long.
        unsafe {
            asm!(
                ".cpu cortex-m55",
                "wls lr, lr, 3f",
                "2:",
                "vldrw.u32 q0, [{x}], #16",
                "vmul.f32 q0, q0, {scale}",
                "vadd.f32 q0, q0, {round}",
                "vstrb.32 q0, [r0], #4", // the lowest byte of each
                "le lr, 2b",
                "3:",
                x = inout(reg) x.as_ptr() => _,
                inout("r0") q.as_mut_ptr() => _, // a low register, as stores that narrow ask for
                scale = in(reg) scale,
                round = in(reg) ROUND,
                inout("lr") x.len() / VECTOR => _,
                out("d0") _, out("d1") _,
                options(nostack),
            );
        }
    }
}

/// The largest magnitude, or NaN if there is one.
pub(super) fn max_magnitude(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<VECTOR>();
    let mut max = rest.iter().fold(0, |max, x| max.max(x.abs().to_bits()));
    // SAFETY: the loop reads the `vectors.len()` elements from the start of `vectors`, maybe none.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "wls lr, lr, 3f",
            "2:",
            "vldrw.u32 q0, [{x}], #16",
            "vabs.f32 q0, q0",
            "vmaxv.u32 {max}, q0", // magnitudes compare like their bits, and a NaN is above everything
            "le lr, 2b",
            "3:",
            x = inout(reg) vectors.as_ptr() => _,
            max = inout(reg) max,
            inout("lr") vectors.len() => _,
            out("d0") _, out("d1") _,
            options(nostack, readonly),
        );
    }
    f32::from_bits(max)
}

pub(super) fn rmsnorm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let whole = x.len().is_multiple_of(2 * VECTOR) && out.len() >= x.len() && weight.len() >= x.len();
    // SAFETY: the length of `x` is a multiple of eight, and the others are at least as long
    // (`whole`).
    if !whole || !exact(|| unsafe { rmsnorm_vectors(out, x, weight, eps) }) {
        norm::rmsnorm(out, x, weight, eps);
    }
}

/// # Safety
/// The core has Helium. The length of `x` is a multiple of eight, and the others are at least as
/// long.
unsafe fn rmsnorm_vectors(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let sum;
    // SAFETY: the loop reads `x.len() / 8` times two vectors of four numbers from the start of `x`.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "vmov.i32 q4, #0",
            "vmov.i32 q5, #0",
            "wls lr, lr, 3f",
            "2:",
            "vldrw.u32 q0, [{x}], #16",
            "vldrw.u32 q1, [{x}], #16",
            "vmul.f32 q0, q0, q0",
            "vmul.f32 q1, q1, q1",
            "vadd.f32 q4, q4, q0",
            "vadd.f32 q5, q5, q1",
            "le lr, 2b",
            "3:",
            sum_lanes!(),
            "vmov {sum}, s16",
            sum = lateout(reg) sum,
            x = inout(reg) x.as_ptr() => _,
            inout("lr") x.len() / (2 * VECTOR) => _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d8") _, out("d9") _, out("d10") _, out("d11") _,
            options(nostack, readonly),
        );
    }
    // SAFETY: the loop reads `x.len() / 4` vectors of `x` and of `weight`, and writes as many of
    // `out`; both are at least as long as `x`.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "wls lr, lr, 3f",
            "2:",
            "vldrw.u32 q0, [{x}], #16",
            "vldrw.u32 q1, [{weight}], #16",
            "vmul.f32 q0, q0, {scale}",
            "vmul.f32 q0, q0, q1",
            "vstrw.u32 q0, [{out}], #16",
            "le lr, 2b",
            "3:",
            x = inout(reg) x.as_ptr() => _,
            weight = inout(reg) weight.as_ptr() => _,
            out = inout(reg) out.as_mut_ptr() => _,
            scale = in(reg) rms_scale(sum, x.len(), eps),
            inout("lr") x.len() / VECTOR => _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _,
            options(nostack),
        );
    }
}

/// [`swiglu`](crate::math::swiglu). The division and the last product, which could be subnormal,
/// are the FPU's; 1 + exp(-v) swallows what comes of a subnormal v.
pub(super) fn swiglu(hb: &mut [f32], hb2: &[f32]) {
    /// For q5 to q7: exp(-v) is 0 above the first, infinite below the second; the third is
    /// infinity.
    static BOUNDS: [[f32; VECTOR]; 3] = [[87.33; VECTOR], [-88.37; VECTOR], [f32::INFINITY; VECTOR]];
    let [g0, g1, g2, g3, g4] = EXP2_G;
    let (v, v_rest) = hb.as_chunks_mut::<VECTOR>();
    let (gate, gate_rest) = hb2.as_chunks::<VECTOR>();
    // SAFETY: the loop reads and writes as many vectors of `v` as there are of both, and reads as
    // many of `gate`. `BOUNDS` has the three vectors that are read.
    unsafe {
        asm!(
            ".cpu cortex-m55",
            "vldrw.u32 q5, [{bounds}]",
            "vldrw.u32 q6, [{bounds}, #16]",
            "vldrw.u32 q7, [{bounds}, #32]",
            "wls lr, lr, 3f",
            "2:",
            "vldrw.u32 q4, [{v}]",
            "vmul.f32 q0, q4, {minus_log2_e}",
            exp2!(),
            "vpt.f32 gt, q4, q5",
            "vmovt.i32 q3, #0",
            "vpt.f32 gt, q6, q4", // not lt, which holds for NaN
            "vmovt q3, q7",
            "vadd.f32 q3, q3, {one}",
            "vldrw.u32 q0, [{gate}], #16",
            "vdiv.f32 s12, s16, s12", // q3 = q4 / q3
            "vdiv.f32 s13, s17, s13",
            "vdiv.f32 s14, s18, s14",
            "vdiv.f32 s15, s19, s15",
            "vmul.f32 s12, s12, s0", // q3 = q3 * q0
            "vmul.f32 s13, s13, s1",
            "vmul.f32 s14, s14, s2",
            "vmul.f32 s15, s15, s3",
            "vstrw.u32 q3, [{v}], #16",
            "le lr, 2b",
            "3:",
            v = inout(reg) v.as_mut_ptr() => _,
            gate = inout(reg) gate.as_ptr() => _,
            bounds = in(reg) BOUNDS.as_ptr(),
            minus_log2_e = in(reg) -core::f32::consts::LOG2_E,
            round = in(reg) ROUND,
            one = in(reg) 1f32,
            g0 = in(reg) g0,
            g1 = in(reg) g1,
            g2 = in(reg) g2,
            g3 = in(reg) g3,
            g4 = in(reg) g4,
            inout("lr") v.len().min(gate.len()) => _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _,
            out("d15") _,
            options(nostack),
        );
    }
    math::swiglu(v_rest, gate_rest);
}
