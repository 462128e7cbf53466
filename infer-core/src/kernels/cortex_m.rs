//! Kernels for Cortex-M with a single-precision FPU, and int8 products for its DSP extension.
//!
//! Two rows share each load of x, and whole vectors are loaded by one instruction. A product and
//! its sum are two instructions (VMUL, VADD) of one cycle each: VMLA would be one, but of three
//! cycles.
//!
//! Rules for assembly here and in `helium`:
//! - A function may lie at any even address. Code that counts from PC (ADR, LDR of a literal)
//!   stands behind `.p2align 2`, and `.if` checks numbers that are counted by hand. The assembler
//!   itself refuses branches out of range and lengthens short ones.
//! - When the compiler places its constants, it takes each line of assembly for at most four bytes.
//!   So no directive repeats lines (`.irp`, `.rept`): Rust's macros write them out.
//! - LDM, LDRD, STRD, VLDM, and VLDRW of Helium fault unless the address is a multiple of four. LDR
//!   and loads of bytes do not, as long as CCR.UNALIGN_TRP is clear, as it is after a reset.
//! - A block may change the condition flags, and may raise the cumulative flags of FPSCR; the
//!   option `preserves_flags` says that it does not.
//!
//! The SAFETY comments rely on two things without saying so. The blocks use no instruction that the
//! core lacks: the table was chosen by the target, or by a caller of
//! [`Kernels::cortex_m_dsp`](crate::Kernels::cortex_m_dsp) who vouches for the DSP extension. And
//! each block declares the registers that it changes.
#![allow(unsafe_code)]

pub(super) mod asm;
mod attention;
mod attention_q8;
mod exp2;
mod int8;
mod matmul;
pub(super) mod norm;
mod scale;

use super::scalar::SCALAR;
use super::table::Kernels;
use crate::math::thumb;
use crate::quant::quantize_by;

pub(super) use attention_q8::attend_q8;

/// The kernels of a Cortex-M with FPU.
pub(super) const FPU: Kernels = Kernels {
    name: "cortex-m",
    matmul_f32: matmul::matmul_f32,
    attend: attention::attend,
    quantize,
    rmsnorm: norm::rmsnorm,
    swiglu: exp2::swiglu,
    ..SCALAR
};

/// The kernels of a Cortex-M with FPU and DSP extension.
pub(super) const DSP: Kernels =
    Kernels { name: "cortex-m-dsp", matmul_q8: int8::matmul_q8, quantize: int8::quantize, attend_q8, ..FPU };

fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    quantize_by(thumb::largest_magnitude, x, group_size, q, s);
}
