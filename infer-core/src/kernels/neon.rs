//! NEON kernels, chosen at compile time: every target with an operating system on 64-bit Arm has
//! NEON.
//!
//! Only the int8 product is written out. The compiler makes two registers of eight lanes by itself,
//! which leaves little to gain in the scalar f32 kernels, but it does not find the widening
//! multiplications of pairs.
#![allow(unsafe_code)]

use core::arch::aarch64::*;

use super::blocks_q8::{self, Q8Rows};
use super::scalar;
use super::table::Kernels;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

/// Rows of a block.
const ROWS: usize = 4;
/// Bytes of a register.
const BYTES: usize = 16;

pub(super) const NEON: Kernels = Kernels { name: "neon", matmul_q8, ..scalar::SCALAR };

fn matmul_q8(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>) {
    if !w.group_size.is_multiple_of(BYTES) {
        return scalar::matmul_q8(w, x, xs, out);
    }
    blocks_q8::matmul_q8(w, x, xs, out, |_, rows, out| {
        // SAFETY: NEON is there, as the target has it. The walker gives ROWS whole rows, each as long
        // as x and of as many groups as x, whose size is a multiple of 16.
        unsafe { dot_rows(rows, out) }
    });
}

/// [`dot_q8`](crate::math::dot_q8) of four rows with x.
///
/// # Safety
/// There are `4 · x.len()` weights and `4 · xs.len()` scales, and x has `xs.len()` groups, whose size
/// is a multiple of 16.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn dot_rows(rows: Q8Rows<'_>, out: &mut [f32; ROWS]) {
    let Q8Rows { x, xs, group_size, .. } = rows;
    let (q, s) = (rows.q.as_ptr(), rows.s.as_ptr());
    let (cols, groups) = (x.len(), xs.len());
    let mut lanes = [vdupq_n_f32(0.0); 8]; // [group mod 8], each of four rows
    for (g, (x, xs)) in x.chunks_exact(group_size).zip(xs).enumerate() {
        let mut sums = [vdupq_n_s32(0); ROWS];
        for (i, x) in x.chunks_exact(BYTES).enumerate() {
            // SAFETY: `x` is a chunk of 16 bytes; each row r has the same chunk at the place computed.
            unsafe {
                let x = vld1q_s8(x.as_ptr());
                for (r, sums) in sums.iter_mut().enumerate() {
                    let w = vld1q_s8(q.add(r * cols + g * group_size + i * BYTES));
                    // Two products in 16 bits: |x| <= 127 and |w| <= 128 give at most 32,512.
                    let pairs = vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x);
                    *sums = vpadalq_s16(*sums, pairs);
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
