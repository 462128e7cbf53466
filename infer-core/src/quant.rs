//! Int8 activations: one scale per group of the weights that they meet.

use crate::math::ROUND;

/// Below this, a group's largest magnitude counts as 0: 127/m would soon overflow, and scales would be subnormal, which
/// some vector units flush to 0.
const SMALLEST_MAX: f32 = 1.0 / (1u128 << 100) as f32;

/// Quantises `x` in groups: m = max|x|, s = m/127, q = round-half-even(x · (127/m)); q = s = 0 where m is 0.
/// A value that is not finite makes its group's scale NaN or infinite, so that it is not lost.
///
/// Shapes: x (batch, cols); returns q (batch, cols) and s (batch, cols / group_size), the beginnings of the buffers.
pub(crate) fn quantize<'a>(x: &[f32], group_size: usize, q: &'a mut [i8], s: &'a mut [f32]) -> (&'a [i8], &'a [f32]) {
    let group_size = group_size.max(1);
    for ((x, q), s) in x.chunks_exact(group_size).zip(q.chunks_exact_mut(group_size)).zip(s.iter_mut()) {
        // Magnitudes compare like their bits, and a NaN is above everything.
        let max = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.abs().to_bits())));
        if max < SMALLEST_MAX {
            *s = 0.0;
            q.fill(0);
            continue;
        }
        *s = max / 127.0;
        let scale = 127.0 / max;
        for (q, x) in q.iter_mut().zip(x) {
            // |x · scale| rounds to at most 127, and the integer stands in the low bits of the sum.
            *q = (x * scale + ROUND).to_bits() as i8;
        }
    }
    (q.get(..x.len()).unwrap_or(&[]), s.get(..x.len() / group_size).unwrap_or(&[]))
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
}
