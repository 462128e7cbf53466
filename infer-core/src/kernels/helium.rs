//! Kernels for Helium (MVE with floats), the vector extension of Cortex-M55 and M85: four numbers
//! or sixteen int8 products per instruction.
//!
//! Helium's float instructions flush subnormal numbers to 0, which the contract does not. But they
//! raise a flag: IDC for an input that was flushed, and UFC for a result (Armv8-M Architecture
//! Reference Manual, FPUnpack and FPRound, which vectors use with the standard FPSCR value but with
//! FPSCR's own cumulative flags). So a kernel runs within [`exact`](asm::exact), and where a flag
//! is up, the kernel for the FPU computes everything again. Where rounding swallows whatever
//! flushing changed, there is no need for that: in [`quantize`](rows::quantize) and in powers of
//! two. NaNs lose their payload, which nothing reads.
//!
//! The target has no Helium, so each block of assembly names the core for the assembler, and
//! declares the halves of the registers that it changes: the compiler takes no notice of whole ones
//! (`out("q0")`) there. Nor does it know VPR: VPT leaves its field P0 changed. So build for the
//! target as it is, not for a core with Helium (`-C target-cpu=cortex-m55`), where the compiler
//! could keep a predicate of its own in P0. LE and vector instructions take FPSCR.LTPSIZE to be 4,
//! as it is after a reset and as the procedure call standard (AAPCS32) has it at every call.
#![allow(unsafe_code)]

use super::table::Kernels;

mod asm;
mod attention;
mod matmul;
mod rows;

/// The kernels of a Cortex-M with FPU and Helium, which implies the DSP extension. A caller of
/// [`Kernels::helium`] vouches for Helium: the SAFETY comments here rely on that for instructions.
pub(super) const HELIUM: Kernels = Kernels {
    name: "helium",
    matmul_f32: matmul::matmul_f32,
    matmul_q8: matmul::matmul_q8,
    quantize: rows::quantize,
    attend: attention::attend,
    attend_q8: attention::attend_q8,
    rmsnorm: rows::rmsnorm,
    swiglu: rows::swiglu,
};
