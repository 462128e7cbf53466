//! NEON kernels, chosen at compile time: every target with an operating system on 64-bit Arm has
//! NEON. The int8 products again for cores with `sdot`, the extension dotprod, which are found at
//! run time.
//!
//! Only products are written out. The compiler makes two registers of eight lanes by itself, which
//! leaves little to gain in the other scalar kernels and in the f32 product of one token, but it
//! does not find the widening multiplications of pairs.
//!
//! Not used: `smmla` of the extension i8mm. Its sums belong to two rows and two tokens each, where
//! a register of `batch.rs` has rows of one token.
#![allow(unsafe_code)]

use core::arch::aarch64::*;

use self::dot::{sdot, widening_dot};
use super::blocks_q8::{self, Q8Rows};
use super::scalar;
use super::table::Kernels;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

#[cfg(feature = "std")]
mod batch;
mod dot;

/// Rows of a block.
const ROWS: usize = 4;
/// Bytes of a register.
const BYTES: usize = 16;

/// The kernels of every core with NEON.
pub(super) const NEON: Kernels = Kernels {
    name: "neon",
    matmul_q8,
    #[cfg(feature = "std")]
    batch: Some(batch::NEON),
    ..scalar::SCALAR
};

/// The kernels, if this machine has dotprod.
#[cfg(feature = "std")]
pub(super) fn neon_dotprod() -> Option<Kernels> {
    let kernels =
        Kernels { name: "neon-dotprod", matmul_q8: matmul_q8_dotprod, batch: Some(batch::DOTPROD), ..scalar::SCALAR };
    std::arch::is_aarch64_feature_detected!("dotprod").then_some(kernels)
}

fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    // SAFETY: NEON is there, as the target has it.
    unsafe { product::<false>(w, x, xs, out) }
}

#[cfg(feature = "std")]
fn matmul_q8_dotprod(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    // SAFETY: this is reached only through the table of `neon_dotprod`, which detects dotprod.
    unsafe { product::<true>(w, x, xs, out) }
}

/// The int8 product, by `sdot` if `DOTPROD`.
///
/// # Safety
/// With `DOTPROD`, the machine has it.
#[inline(always)]
unsafe fn product<const DOTPROD: bool>(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    if !w.group_size.is_multiple_of(BYTES) {
        return scalar::matmul_q8(w, x, xs, out);
    }
    blocks_q8::matmul_q8(w, x, xs, out, |_, rows, out| {
        // SAFETY: NEON is there, as the target has it, and the caller vouches for dotprod. The
        // walker gives ROWS whole rows, each as long as x and of as many groups as x, whose size is
        // a multiple of 16.
        unsafe { dot_rows::<DOTPROD>(rows, out) }
    });
}

/// [`dot_q8`](crate::math::dot_q8) of four rows with x.
///
/// # Safety
/// There are `4 · x.len()` weights and `4 · xs.len()` scales, and x has `xs.len()` groups, whose
/// size is a multiple of 16. With `DOTPROD`, the machine has it.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn dot_rows<const DOTPROD: bool>(rows: Q8Rows<'_>, out: &mut [f32; ROWS]) {
    let Q8Rows { x, xs, group_size, .. } = rows;
    let (q, s) = (rows.q.as_ptr(), rows.s.as_ptr());
    let (cols, groups) = (x.len(), xs.len());
    let mut lanes = [vdupq_n_f32(0.0); 8]; // [group mod 8], each of four rows
    for (g, (x, xs)) in x.chunks_exact(group_size).zip(xs).enumerate() {
        let mut sums = [vdupq_n_s32(0); ROWS];
        for (i, x) in x.chunks_exact(BYTES).enumerate() {
            // SAFETY: `x` is a chunk of 16 bytes; each row r has the same chunk at the place
            // computed. The caller vouches for dotprod.
            unsafe {
                let x = vld1q_s8(x.as_ptr());
                for (r, sums) in sums.iter_mut().enumerate() {
                    let w = vld1q_s8(q.add(r * cols + g * group_size + i * BYTES));
                    *sums = if DOTPROD {
                        sdot(*sums, w, x)
                    } else {
                        widening_dot(*sums, vget_low_s8(w), vget_high_s8(w), vget_low_s8(x), vget_high_s8(x))
                    };
                }
            }
        }
        let sums = vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
        // SAFETY: element r · groups + g is the scale of group g of row r, below 4 · groups.
        let ws = unsafe { [0, 1, 2, 3].map(|r| *s.add(r * groups + g)) };
        // SAFETY: `ws` has the four numbers that are loaded.
        let ws = unsafe { vld1q_f32(ws.as_ptr()) };
        let contribution = vmulq_n_f32(vmulq_f32(vcvtq_f32_s32(sums), ws), *xs);
        lanes[g % 8] = vaddq_f32(lanes[g % 8], contribution);
    }
    let t = [0, 1, 2, 3].map(|i| vaddq_f32(lanes[i], lanes[i + 4]));
    let sum = vaddq_f32(vaddq_f32(t[0], t[2]), vaddq_f32(t[1], t[3]));
    // SAFETY: `out` has room for four numbers.
    unsafe { vst1q_f32(out.as_mut_ptr(), sum) }
}
