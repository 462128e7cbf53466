//! Vector arithmetic: exp, norms, SwiGLU, AdamW.
//!
//! Functions that are `inline(always)` are called inside [`vectorized`] or
//! [`pulp::Arch::dispatch`], which compile them for the machine's vector instructions. Plain loops
//! over zipped slices vectorise there; sums run in [`LANES`] lanes, as a single chain may not be
//! reordered.

use itertools::izip;
use pulp::{Simd, WithSimd};

use crate::model::rates::Rates;

/// The number of lanes of a sum; rows of positions are padded to a multiple of it.
pub(super) const LANES: usize = 16;

/// Compiles a closure that is `inline(always)` for the machine's vector instructions.
pub(super) fn vectorized<R>(kernel: impl FnMut() -> R) -> R {
    struct Kernel<F>(F);

    // Dispatch takes closures as FnOnce, through a shim that is not inlined: it would not be
    // compiled for the vector instructions.
    impl<R, F: FnMut() -> R> WithSimd for Kernel<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Kernel(kernel))
}

/// The polynomial of 2^f on -0.5..=0.5, the constant first: minimax by Remez' algorithm, relative
/// error 2.4e-7 in f32.
const EXP2: [f32; 6] = [1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_13, 0.009_675_541, 0.001_327_647_2];
/// 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// 2 to this is the smallest normal number. [`exp2`] stays there for smaller x, as subnormal
/// numbers are slow.
const EXP2_MIN: f32 = -126.0;

/// 2^x for x up to 127.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    let x = if x < EXP2_MIN { EXP2_MIN } else { x }; // NaN stays
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let [c0, c1, c2, c3, c4, c5] = EXP2;
    let power = c0 + f * (c1 + f * (c2 + f * (c3 + f * (c4 + f * c5))));
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// 2^x for x up to 127, lane by lane.
#[inline(always)]
pub(super) fn exp2s<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.max_f32s(simd.splat_f32s(EXP2_MIN), x); // x86 gives the second if one is NaN
    let shifted = simd.add_f32s(x, simd.splat_f32s(ROUND));
    let f = simd.sub_f32s(x, simd.sub_f32s(shifted, simd.splat_f32s(ROUND)));
    let mut power = simd.splat_f32s(EXP2[5]);
    for i in (0..5).rev() {
        power = simd.mul_add_e_f32s(power, f, simd.splat_f32s(EXP2[i]));
    }
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), exponent))
}

/// Σ x²
#[inline(always)]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += x * x;
        }
    }
    total(lanes)
}

/// Sum of the lanes, in halves: a chain of additions would take longer than the sums of a row.
#[inline(always)]
pub(super) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// AdamW's update by PyTorch's formula (and dfdx's).
pub(super) fn adam(rates: &Rates, values: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
    let Rates { betas: [beta1, beta2], corrections: [scale1, scale2], lr, eps, decay } = *rates;
    vectorized(
        #[inline(always)]
        || {
            for (w, m, v, g) in izip!(&mut *values, &mut *m, &mut *v, gradient) {
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *w -= lr * (*m * scale1) / ((*v * scale2).sqrt() + eps) + decay * *w;
            }
        },
    );
}

/// 1 / √(mean(x²) + eps)
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt()
}

/// out = rmsnorm(x), row by row.
pub(super) fn rmsnorm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    vectorized(
        #[inline(always)]
        || {
            for (out, x) in out.chunks_exact_mut(weight.len()).zip(x.chunks_exact(weight.len())) {
                let scale = inverse_rms(x, eps);
                for (out, x, w) in izip!(out, x, weight) {
                    *out = x * scale * w;
                }
            }
        },
    );
}

/// Adds the gradients of rmsnorm's input and weight to dx and d_weight, given that of its output.
pub(super) fn rmsnorm_backward(
    dx: &mut [f32],
    d_weight: &mut [f32],
    dy: &[f32],
    (x, weight, eps): (&[f32], &[f32], f32),
) {
    let dim = weight.len();
    vectorized(
        #[inline(always)]
        || {
            for (dx, dy, x) in izip!(dx.chunks_exact_mut(dim), dy.chunks_exact(dim), x.chunks_exact(dim)) {
                let scale = inverse_rms(x, eps);
                for (dw, dy, x) in izip!(&mut *d_weight, dy, x) {
                    *dw += dy * x * scale;
                }
                // d(scale) = -scale³ / dim · Σ x dx
                let mut lanes = [0.0; LANES];
                for (x, dy, w) in izip!(x.chunks(LANES), dy.chunks(LANES), weight.chunks(LANES)) {
                    for (lane, x, dy, w) in izip!(&mut lanes, x, dy, w) {
                        *lane += x * dy * w;
                    }
                }
                let inner = total(lanes) * scale * scale * scale / dim as f32;
                for (dx, dy, x, w) in izip!(dx, dy, x, weight) {
                    *dx += scale * dy * w - inner * x;
                }
            }
        },
    );
}

const LOG2_E: f32 = std::f32::consts::LOG2_E;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    // exp2 takes at most 127; sigmoid(-87) is 1e-38 anyway.
    let x = if x > -87.0 { x } else { -87.0 };
    1.0 / (1.0 + exp2(-x * LOG2_E))
}

/// hb = silu(h1) · h3, where each row of h13 is h1 followed by h3.
pub(super) fn swiglu(hb: &mut [f32], h13: &[f32], hidden_dim: usize) {
    vectorized(
        #[inline(always)]
        || {
            for (hb, h13) in hb.chunks_exact_mut(hidden_dim).zip(h13.chunks_exact(2 * hidden_dim)) {
                let (h1, h3) = h13.split_at(hidden_dim);
                for (hb, h1, h3) in izip!(hb, h1, h3) {
                    *hb = h1 * sigmoid(*h1) * h3;
                }
            }
        },
    );
}

/// Turns h13 into its gradient, and dhb from the gradient of [`swiglu`]'s output into that output.
pub(super) fn swiglu_backward(h13: &mut [f32], dhb: &mut [f32], hidden_dim: usize) {
    vectorized(
        #[inline(always)]
        || {
            for (dhb, h13) in dhb.chunks_exact_mut(hidden_dim).zip(h13.chunks_exact_mut(2 * hidden_dim)) {
                let (h1, h3) = h13.split_at_mut(hidden_dim);
                for (dhb, h1, h3) in izip!(dhb, h1, h3) {
                    let (x1, x3, dy) = (*h1, *h3, *dhb);
                    let s = sigmoid(x1);
                    let silu = x1 * s;
                    *dhb = silu * x3;
                    *h3 = dy * silu;
                    *h1 = dy * x3 * (s + silu * (1.0 - s));
                }
            }
        },
    );
}
