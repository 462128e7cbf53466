//! Kernels for Cortex-M with a single-precision FPU, and int8 products for its DSP extension.
//!
//! Two rows share each load of x, and whole vectors are loaded by one instruction. A product and its sum are two
//! instructions (VMUL, VADD) of one cycle each: VMLA would be one, but of three cycles.
#![allow(unsafe_code)]

mod attention;
mod attention_q8;
mod exp2;
mod int8;
mod matmul;
mod norm;
mod scale;

use super::Kernels;
pub(super) use attention_q8::attend_q8;
pub(crate) use norm::{largest, largest_shifted};

// For the assembler: thumbv8m has the DSP extension as an option only.
#[cfg(thumb_dsp)]
macro_rules! with_dsp {
    () => {
        ""
    };
}
#[cfg(not(thumb_dsp))]
macro_rules! with_dsp {
    () => {
        ".cpu cortex-m33"
    };
}

use with_dsp;

/// The kernels of a Cortex-M with FPU.
pub(crate) const FPU: Kernels = Kernels {
    name: "cortex-m",
    matmul_f32: matmul::matmul_f32,
    attend: attention::attend,
    rmsnorm: norm::rmsnorm,
    swiglu: exp2::swiglu,
    ..Kernels::scalar()
};

/// The kernels of a Cortex-M with FPU and DSP extension.
pub(crate) const DSP: Kernels =
    Kernels { name: "cortex-m-dsp", matmul_q8: int8::matmul_q8, quantize: int8::quantize, attend_q8, ..FPU };
