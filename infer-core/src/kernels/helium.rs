//! Kernels for Helium (MVE with floats), the vector extension of Cortex-M55 and M85: four numbers
//! or sixteen int8 products per instruction.
//!
//! Helium's float instructions flush subnormal numbers to 0, which the contract does not. They
//! tell: the flag IDC is raised for an input that was flushed, and UFC for a result (Armv8-M
//! Architecture Reference Manual, FPUnpack and FPRound, which vectors use with the standard FPSCR
//! value but with FPSCR's own cumulative flags). So a kernel runs within [`exact`], and where a
//! flag is up, the kernel for the FPU computes it all again. Where rounding swallows whatever
//! flushing changed, there is no need for it: in [`quantize`] and in powers of 2. NaNs lose their
//! payload, which nothing reads.
//!
//! The target has no Helium, so each block of assembly names the core for the assembler, and the
//! halves of the registers that it changes: of whole ones (`out("q0")`) the compiler takes no
//! notice there. Nor does it know VPR, whose P0 VPT leaves changed: build for the target as it is,
//! not for a core with Helium (`-C target-cpu=cortex-m55`), where the compiler could keep a
//! predicate of its own there. LE and vector instructions take FPSCR.LTPSIZE to be 4, as it is
//! after a reset and as the procedure call standard (AAPCS32) has it at every call.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Kernels, cortex_m, scalar};
use crate::math::{self, EXP2_G, ROUND};
use crate::matrix::{rows_of, rows_of_mut};

mod attention;
mod matmul;

/// The kernels of a Cortex-M with FPU and Helium, which implies the DSP extension. Whoever chooses
/// them vouches for Helium: that is what the SAFETY comments here rely on for instructions.
pub(crate) const HELIUM: Kernels = Kernels {
    name: "helium",
    matmul_f32: matmul::matmul_f32,
    matmul_q8: matmul::matmul_q8,
    quantize,
    attend: attention::attend,
    attend_q8: attention::attend_q8,
    rmsnorm,
    swiglu,
};

/// Numbers in a register.
const VECTOR: usize = 4;

/// Runs a kernel, and tells whether no subnormal number came up, so that its results are those of
/// the contract.
#[inline(always)]
fn exact(kernel: impl FnOnce()) -> bool {
    const IDC_UFC: u32 = 1 << 7 | 1 << 3;
    let flags: u32;
    // SAFETY: clears flags that Rust does not rely on. The blocks keep their order, as all of them
    // may touch memory.
    unsafe {
        asm!(
            "vmrs {t}, fpscr",
            "bic {t}, {t}, {flags}",
            "vmsr fpscr, {t}",
            t = out(reg) _,
            flags = const IDC_UFC,
            options(nostack),
        );
    }
    kernel();
    // SAFETY: reads flags.
    unsafe { asm!("vmrs {}, fpscr", out(reg) flags, options(nostack)) }
    flags & IDC_UFC == 0
}

/// [`math::exp2`] of q0, into q3; q1 and q2 are scratch. A flushed number changes nothing:
/// subnormal arguments and products vanish in the next sum.
macro_rules! exp2 {
    () => {
        "vadd.f32 q1, q0, {round}
        vsub.f32 q2, q1, {round}
        vsub.f32 q2, q0, q2
        vmul.f32 q3, q2, {g4}
        vadd.f32 q3, q3, {g3}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {g2}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {g1}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {g0}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {one}
        vshl.i32 q1, q1, #23
        vadd.i32 q1, q1, {one}
        vmul.f32 q3, q3, q1"
    };
}
use exp2;

/// Adds up eight lanes, in q4 and q5, into s16: [`math::sum_lanes`].
macro_rules! sum_lanes {
    () => {
        "vadd.f32 q4, q4, q5
        vadd.f32 s16, s16, s18
        vadd.f32 s17, s17, s19
        vadd.f32 s16, s16, s17"
    };
}
use sum_lanes;

/// [`scalar::quantize`], with groups of a multiple of four, as they all are. What a flushed x ·
/// scale would have been is far below 1/2, since scale is at most 127 · 2^100.
fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    for ((x, q), s) in rows_of(x, group_size).zip(rows_of_mut(q, group_size)).zip(s) {
        let scale = scalar::scale_for(max_magnitude(x), s);
        // SAFETY: as many numbers as bytes.
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
fn max_magnitude(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<VECTOR>();
    let mut max = rest.iter().fold(0, |max, x| max.max(x.abs().to_bits()));
    // SAFETY: reads vectors.
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

fn rmsnorm(out: &mut [f32], x: &[f32], weight: &[f32]) {
    let whole = x.len().is_multiple_of(2 * VECTOR) && out.len() >= x.len() && weight.len() >= x.len();
    // SAFETY: as many numbers of each as there are of x, a multiple of eight.
    if !whole || !exact(|| unsafe { rmsnorm_vectors(out, x, weight) }) {
        (cortex_m::FPU.rmsnorm)(out, x, weight);
    }
}

/// # Safety
/// The core has Helium. The length of x is a multiple of eight, and the others have at least as
/// many numbers.
unsafe fn rmsnorm_vectors(out: &mut [f32], x: &[f32], weight: &[f32]) {
    let sum;
    // SAFETY: reads x.
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
    // SAFETY: reads x and weight, writes out.
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
            scale = in(reg) math::rms_scale(sum, x.len()),
            inout("lr") x.len() / VECTOR => _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _,
            options(nostack),
        );
    }
}

/// [`math::swiglu`]. The division and the last product, which could be subnormal, are the FPU's; 1
/// + exp(-v) swallows what comes of a subnormal v.
fn swiglu(hb: &mut [f32], hb2: &[f32]) {
    /// Where exp(-v) is 0, where it is infinite, and infinity, in q5 to q7.
    static BOUNDS: [[f32; VECTOR]; 3] = [[87.33; VECTOR], [-88.37; VECTOR], [f32::INFINITY; VECTOR]];
    let [g0, g1, g2, g3, g4] = EXP2_G;
    let (v, v_rest) = hb.as_chunks_mut::<VECTOR>();
    let (gate, gate_rest) = hb2.as_chunks::<VECTOR>();
    // SAFETY: reads and writes as many vectors as there are of both.
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
