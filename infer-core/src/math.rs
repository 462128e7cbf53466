//! Vector maths with a fixed order of operations.
//!
//! This is the floor: nothing else of the computation is below it, and it defines the result. Sums
//! run in eight lanes by index mod 8, which are then added as `t_i = l_i + l_{i+4}`, `(t0 + t2) +
//! (t1 + t3)`. One AVX register, two NEON or SSE registers and a plain loop can all keep that
//! order. Multiplications and additions are rounded one by one; nothing here may be contracted to a
//! fused multiply-add.

use crate::error::Error;

#[cfg(thumb_fpu)]
#[doc(hidden)] // public for the check on the chip
pub mod thumb;

/// The functions of this module that a target known at compile time has faster, with the same
/// results. Code outside kernels calls them here; kernels name what they take.
pub(crate) mod native {
    #[cfg(thumb_fpu)]
    pub use super::thumb::{largest_magnitude, max, sqrt};
    #[cfg(not(thumb_fpu))]
    pub use super::{largest_magnitude, max, sqrt};
}

/// Lanes of a sum.
pub const LANES: usize = 8;

/// 1.5·2^23. Adding it rounds a number to an integer (half to even), which then stands in the low
/// bits of the sum.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Adds up the lanes of a sum in the order of the contract.
#[inline(always)]
pub fn sum_lanes(l: [f32; LANES]) -> f32 {
    let t = [l[0] + l[4], l[1] + l[5], l[2] + l[6], l[3] + l[7]];
    (t[0] + t[2]) + (t[1] + t[3])
}

/// Dot product of two slices of equal length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane += a * b;
    }
    sum_lanes(lanes)
}

/// Dot product of two int8 rows with a scale per group: a group contributes `(f32(Σ w·x) · ws) ·
/// xs` to the lane of its index mod 8. The integer sum is exact.
#[inline(always)]
pub(crate) fn dot_q8(w: &[i8], ws: &[f32], x: &[i8], xs: &[f32], group_size: usize) -> f32 {
    let mut lanes = [0.0; LANES];
    let group_size = group_size.max(1); // the compiler cannot see that it is not 0, and would keep a panic
    let products = w.chunks_exact(group_size).zip(x.chunks_exact(group_size)).zip(ws.iter().zip(xs));
    for (g, ((w, x), (ws, xs))) in products.enumerate() {
        // At most 1024 · 127 · 128, far from overflow.
        let sum: i32 = w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
        lanes[g % LANES] += (sum as f32 * ws) * xs;
    }
    sum_lanes(lanes)
}

/// Sum of a slice.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += x[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += x;
    }
    sum_lanes(lanes)
}

/// # Errors
/// [`Error::NotFinite`] with the first element that is NaN or infinite.
pub(crate) fn check_finite(x: &[f32]) -> Result<(), Error> {
    // Without an early exit, so that it vectorises.
    if native::largest_magnitude(x) < f32::INFINITY {
        return Ok(());
    }
    Err(Error::NotFinite { token: x.iter().position(|x| !x.is_finite()).unwrap_or(0) })
}

/// The largest magnitude; a NaN is above everything.
#[inline(always)]
pub fn largest_magnitude(x: &[f32]) -> f32 {
    // Magnitudes compare like their bits; the shift drops the sign bit.
    let max = x.iter().fold(0, |max, x| max.max(x.to_bits() << 1));
    f32::from_bits(max >> 1)
}

/// Whether additions round to the nearest number, halves to even, as every result of this crate
/// takes for granted. A thread or task can be set to another mode, and compilers do not know of it.
pub(crate) fn rounds_to_nearest() -> bool {
    let [one, ulp] = core::hint::black_box([1.0, f32::EPSILON]); // so that the sums are computed here and now
    let half = ulp * 0.5;
    // Towards infinity, or with halves away from zero, the first sum is not 1. Towards zero and
    // minus infinity the second one stays below 1 + 2 ulp.
    one + half == 1.0 && (one + ulp) + half == 1.0 + 2.0 * f32::EPSILON
}

/// Start value of [`hash_logits`].
pub const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a (64 bits) over the little-endian bits of logits, continued from `hash`: one number that
/// tells whether two machines computed the same.
pub fn hash_logits(hash: u64, logits: &[f32]) -> u64 {
    logits.iter().fold(hash, |hash, x| hash_bytes(hash, &x.to_le_bytes()))
}

/// The same over bytes: tells whether a model in flash is the one that was put there.
pub fn hash_bytes(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The largest element; NaN counts for nothing.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    // In lanes, as a plain fold does not vectorise.
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

/// `out = weight · x / sqrt(mean(x²) + eps)` (Zhang and Sennrich, 2019).
#[inline(always)]
pub fn rmsnorm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / sqrt(mean_square(dot(x, x), x.len(), eps));
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = weight * (scale * x);
    }
}

/// The number under [`rmsnorm`]'s root, given the sum of `n` squares. It is NaN where the sum is
/// infinite: dividing by infinity would turn damage into zeros that look sound.
#[inline(always)]
pub(crate) fn mean_square(sum: f32, n: usize, eps: f32) -> f32 {
    let mean = sum / n as f32;
    if mean < f32::INFINITY { mean + eps } else { f32::NAN }
}

/// The square root, correctly rounded everywhere. libm's is inline assembly on x86-64, which stalls
/// between AVX instructions, so that an intrinsic takes its place there.
#[inline(always)]
pub fn sqrt(x: f32) -> f32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    #[allow(unsafe_code)]
    // SAFETY: the intrinsics need SSE2, which the target has.
    unsafe {
        use core::arch::x86_64::{_mm_cvtss_f32, _mm_set_ss, _mm_sqrt_ss};
        _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)))
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
    libm::sqrtf(x)
}

/// The numerator of softmax, for a score `x` <= 0 in units of ln 2 above the largest: 2^x, and 0
/// where that is below 2^-60, so that no subnormal number arises, which some vector units flush.
/// NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2_score(x: f32) -> f32 {
    let y = exp2(x);
    if x < SMALLEST_SCORE { 0.0 } else { y }
}

/// Scores below this get the weight 0.
pub(crate) const SMALLEST_SCORE: f32 = -60.0;

/// SwiGLU: `hb = silu(hb) · hb2` with `silu(v) = v / (1 + exp(-v))` (Shazeer, 2020).
#[inline(always)]
pub fn swiglu(hb: &mut [f32], hb2: &[f32]) {
    for (v, gate) in hb.iter_mut().zip(hb2) {
        *v = *v / (1.0 + exp(-*v)) * gate;
    }
}

/// e^x with a relative error below (2 + |x|)·1e-7 (that of exp2, and of rounding its argument;
/// tested against f64), and never a subnormal result: 0 below -87.33, infinity above 88.37. NaN
/// stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let y = exp2(x * core::f32::consts::LOG2_E);
    // These selects leave a NaN alone, since it compares false.
    let y = if x < -87.33 { 0.0 } else { y };
    if x > 88.37 { f32::INFINITY } else { y }
}

/// 2^x for -126 <= x < 127.5 with a relative error below 2e-7 (tested against f64).
///
/// Without branches, tables or fused operations, so that it vectorises and gives the same bits
/// everywhere. With n = round(x) and f = x - n, which is exact, 2^x = 2^n · (1 + f·g(f)); g is the
/// minimax polynomial of degree 4 for the relative error on |f| <= 1/2 (9.1e-8 before rounding).
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let [g0, g1, g2, g3, g4] = EXP2_G;
    let y = ((((g4 * f + g3) * f + g2) * f + g1) * f + g0) * f + 1.0;
    // n stands in the low bits of the sum, and goes to the exponent of 1. Adding it to the exponent
    // of y would turn a NaN into a number.
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

#[allow(clippy::approx_constant)] // near ln 2, but not ln 2
pub(crate) const EXP2_G: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// Rotary embedding (Su et al., 2021) of heads of `cos_sin.len()` values: each pair (v0, v1) is
/// turned by its angle. `cos_sin` holds cos and sin of the angles in turn.
pub fn rope(heads: &mut [f32], cos_sin: &[f32]) {
    if cos_sin.is_empty() {
        return;
    }
    for head in heads.chunks_exact_mut(cos_sin.len()) {
        let (pairs, _) = head.as_chunks_mut::<2>();
        for ([v0, v1], [cos, sin]) in pairs.iter_mut().zip(cos_sin.as_chunks::<2>().0) {
            (*v0, *v1) = (*v0 * cos - *v1 * sin, *v0 * sin + *v1 * cos);
        }
    }
}

/// Sine and cosine of an angle >= 0: both within 2e-7 up to 10,000 radians, and within 1e-5 up to
/// 100,000 (tested against f64). libm's take f64, which a chip has to emulate.
///
/// The angle is taken modulo pi/2, whose three parts have so few bits that their multiples are
/// exact; then the minimax polynomials of Cephes (Moshier, 1989) for |r| <= pi/4.
pub fn sin_cos(x: f32) -> (f32, f32) {
    const HALF_PI: [f32; 3] = [1.570_312_5, 4.837_513e-4, 7.549_79e-8];
    let shifted = x * core::f32::consts::FRAC_2_PI + ROUND;
    let n = shifted - ROUND;
    let r = ((x - n * HALF_PI[0]) - n * HALF_PI[1]) - n * HALF_PI[2];
    let z = r * r;
    let sin = ((-1.951_529_6e-4 * z + 8.332_161e-3) * z - 0.166_666_55) * z * r + r;
    let cos = ((2.443_315_7e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2) * z * z - 0.5 * z + 1.0;
    // The quadrant stands in the low bits of the sum.
    match shifted.to_bits() & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests;
