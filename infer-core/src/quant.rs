//! Rounding to int8: the rule for weights and the rule for activations, side by side.
//!
//! Both scale a group so that its largest magnitude m becomes 127, and round half to even. They
//! differ in the last bit of a quotient:
//! - weights: `s = m / 127`, `q = round(w / s)`. This is llama2.c's file format, and its exporter
//!   writes the same bytes. It happens once, so a division per weight does not matter. Only m = 0
//!   counts as 0, and damaged weights are refused.
//! - activations, cached keys and values: `s = m / 127`, `q = round(x · (127 / m))`. This happens
//!   for each token on the chip, where a division takes 14 cycles (Cortex-M4), so there is one per
//!   group. Below m = 2^-100 a group counts as 0, since 127 / m would overflow and s be subnormal.
//!   Damage makes s NaN or infinite, and so the logits.

use crate::math::{ROUND, largest_magnitude};

/// Quantises one group of weights: `s = max|w| / 127`, `q = round-half-even(w / s)`; q = s = 0 for
/// a group of zeros. Returns s. A group with a NaN or an infinity has no scale: `None`.
#[cfg(any(test, feature = "std"))]
pub(crate) fn quantize_group(w: &[f32], q: &mut [i8]) -> Option<f32> {
    let max = w.iter().fold(0f32, |max, w| if w.abs() > max { w.abs() } else { max });
    let s = max / 127.0;
    for (q, &w) in q.iter_mut().zip(w) {
        if !w.is_finite() {
            return None;
        }
        *q = if s > 0.0 { libm::rintf(w / s) as i8 } else { 0 };
    }
    Some(s)
}

/// Quantises activations in groups, one byte per value.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]) {
    quantize_by(largest_magnitude, x, group_size, q, s);
}

/// [`quantize`] with another implementation of [`largest_magnitude`].
#[inline(always)]
pub(crate) fn quantize_by(
    largest_magnitude: impl Fn(&[f32]) -> f32,
    x: &[f32],
    group_size: usize,
    q: &mut [i8],
    s: &mut [f32],
) {
    let group_size = group_size.max(1);
    for ((x, q), s) in x.chunks_exact(group_size).zip(q.chunks_exact_mut(group_size)).zip(s) {
        let factor = factor_for(largest_magnitude(x), s);
        for (q, x) in q.iter_mut().zip(x) {
            *q = round(x * factor);
        }
    }
}

/// Below this, a group's largest magnitude counts as 0: 127/m would soon overflow, and scales would
/// be subnormal, which some vector units flush to 0.
const SMALLEST_MAX: f32 = 1.0 / (1u128 << 100) as f32;

/// Writes the scale of a group of activations with this largest magnitude, and returns the factor
/// that its values are multiplied by: 127/m, or 0. A value that is not finite makes the scale NaN
/// or infinite, so that it is not lost.
#[inline(always)]
pub(crate) fn factor_for(max: f32, s: &mut f32) -> f32 {
    if max < SMALLEST_MAX {
        *s = 0.0;
        return 0.0;
    }
    *s = max / 127.0;
    127.0 / max
}

/// Rounds a number of at most 127 half to even: the integer then stands in the low bits of the sum.
#[inline(always)]
pub(crate) fn round(x: f32) -> i8 {
    (x + ROUND).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_round_half_to_even() {
        let mut q = [9; 8];
        let mut s = [9.0; 2];
        quantize(&[127.0, 0.5, 1.5, -2.5, -254.0, 1.0, 3.0, 254.0], 4, &mut q, &mut s);
        assert_eq!(q, [127, 0, 2, -2, -127, 0, 2, 127]);
        assert_eq!(s, [1.0, 2.0]);
    }

    #[test]
    fn nothing_is_lost_or_made_up() {
        let (mut q, mut s) = ([9; 4], [9.0; 1]);
        quantize(&[0.0, -0.0, 1e-38, -1e-40], 4, &mut q, &mut s);
        assert_eq!((q, s), ([0; 4], [0.0]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            quantize(&[1.0, bad, 2.0, 0.0], 4, &mut q, &mut s);
            assert!(!s[0].is_finite(), "{bad} gave scale {}", s[0]);
        }
    }

    #[test]
    fn the_rules_differ_in_the_last_bit_of_a_quotient() {
        // Quotients near a half, where the last bit decides.
        let mut found = 0;
        for m in (1..2000).map(|m| m as f32 * 0.37) {
            for halves in (1..254).step_by(2).map(|n| n as f32 * 0.5) {
                let x = [m, halves * (m / 127.0)];
                let (mut weights, mut activations, mut s) = ([0; 2], [0; 2], [0.0]);
                assert_eq!(quantize_group(&x, &mut weights), Some(m / 127.0));
                quantize(&x, 2, &mut activations, &mut s);
                assert_eq!((activations[0], s[0]), (127, m / 127.0));
                assert!(weights[1].abs_diff(activations[1]) <= 1);
                found += usize::from(weights != activations);
            }
        }
        assert!(found > 0);
    }
}
