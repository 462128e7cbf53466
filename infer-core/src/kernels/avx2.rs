//! AVX2 kernels, and the int8 product again for AVX-VNNI.
//!
//! Eight rows share each load of x. Their sums of eight lanes are transposed at the end, so that
//! lanes are added for eight rows at once. Functions without intrinsics are the scalar ones,
//! compiled for AVX2: eight lanes are one register, and the compiler finds that by itself.
//!
//! Tried and rejected: fused multiply-add (it would break the contract; it gained nothing from
//! memory), and rows of 16 lanes (AVX-512), which is another order of summation.
#![allow(unsafe_code)]

use self::vectors::compiled;
use super::scalar;
use super::table::{HeadsQ8, Kernels};
use crate::{math, quant};

pub(super) mod attention;
pub(super) mod batch;
mod matmul_f32;
pub(super) mod matmul_q8;
mod stripes;
pub(super) mod vectors;

/// The kernels, if this machine has AVX2.
pub(super) fn avx2() -> Option<Kernels> {
    std::is_x86_feature_detected!("avx2").then_some(Kernels { name: "avx2", batch: Some(batch::AVX2), ..TABLE })
}

/// The kernels, if this machine has AVX2 and AVX-VNNI.
pub(super) fn avx_vnni() -> Option<Kernels> {
    let (matmul_q8, batch) = (matmul_q8::matmul_q8_vnni, Some(batch::AVX_VNNI));
    let kernels = Kernels { name: "avx-vnni", matmul_q8, batch, ..TABLE };
    (std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("avxvnni")).then_some(kernels)
}

/// The functions of these kernels. They are reached only through tables that [`avx2`] and
/// [`avx_vnni`] give; `avx512` builds on one of these. So wherever one of them runs, its features
/// were detected: that is what the SAFETY comments of the wrappers say.
const TABLE: Kernels = Kernels {
    name: "",
    matmul_f32: matmul_f32::matmul_f32,
    matmul_q8: matmul_q8::matmul_q8,
    quantize,
    attend: attention::attend,
    attend_q8,
    rmsnorm,
    swiglu,
    batch: None,
};

compiled! {
    fn quantize["avx2"](x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
        quant::quantize(x, group_size, q, s);
    }

    fn attend_q8["avx2"](heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]) {
        scalar::attend_q8(heads, att, out);
    }

    fn rmsnorm["avx2"](out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        math::rmsnorm(out, x, weight, eps);
    }

    fn swiglu["avx2"](hb: &mut [f32], hb2: &[f32]) {
        math::swiglu(hb, hb2);
    }
}
