//! The table of tolerances: how far results may be from the oracle, and why. All other results must
//! agree exactly.

/// A bound on the difference to the oracle: absolute, or relative to the largest magnitude of the
/// vector.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Absolute bound.
    pub absolute: f64,
    /// Bound relative to the largest expected magnitude.
    pub relative: f64,
}

/// Logits of stories260K: the project's promise to its users (1e-4).
pub const STORIES260K_LOGITS: Tolerance = Tolerance { absolute: 1e-4, relative: 0.0 };

/// Logits of random f32 models of up to 5 layers and 256 dimensions. Each of about 8 products per
/// layer in a row adds rounding errors of 2^-24 = 6e-8, which grow with the square root of their
/// length (16) in lanes of one eighth of it. Softmax and norms pass them on at most twice, so about
/// 1e-6 is expected; 1.2e-6 was seen.
pub const RANDOM_F32_LOGITS: Tolerance = Tolerance { absolute: 0.0, relative: 5e-6 };

/// Logits up to 16 of trained models of 5 layers: f32 steps at 16 are 1e-6, and 3e-6 was seen.
pub const TRAINED_LOGITS: Tolerance = Tolerance { absolute: 1e-5, relative: 0.0 };

/// Logits up to 16 with weights in int8 groups of 4 (2^-8 each) and int8 activations: 0.3 is a
/// fiftieth of the largest.
pub const INT8_LOGITS: Tolerance = Tolerance { absolute: 0.3, relative: 0.0 };

/// Logits of random f32 models of up to 2 layers with an int8 KV cache: cached keys, values and
/// queries are off by up to 1/254 = 0.4% of the largest of their row, in each layer and in sums
/// that average little in heads of 4. 1.2% was seen.
pub const INT8_KV_LOGITS: Tolerance = Tolerance { absolute: 0.0, relative: 0.02 };

/// Checks a vector against the oracle's.
///
/// # Errors
/// A line that names the first element outside the bound. NaN is outside every bound.
pub fn check(got: &[f32], want: &[f64], tolerance: Tolerance) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} elements instead of {}", got.len(), want.len()));
    }
    let largest = want.iter().fold(0f64, |max, x| max.max(x.abs()));
    let bound = tolerance.absolute + tolerance.relative * largest;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let difference = (f64::from(got) - want).abs();
        // The negation makes NaN fail. Equal infinities have a NaN difference and pass as equal.
        if !(difference <= bound || f64::from(got) == want) {
            return Err(format!("element {i} is {got} instead of {want}: {difference:e} apart, bound {bound:e}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparator_knows_its_edges() {
        let t = Tolerance { absolute: 0.5, relative: 0.0 };
        assert!(check(&[1.0], &[1.5], t).is_ok());
        assert!(check(&[1.0], &[1.51], t).is_err());
        assert!(check(&[0.0], &[-0.0], t).is_ok());
        assert!(check(&[f32::NAN], &[1.0], t).is_err());
        assert!(check(&[1.0], &[f64::NAN], t).is_err());
        assert!(check(&[f32::NAN], &[f64::NAN], t).is_err());
        assert!(check(&[f32::INFINITY], &[f64::INFINITY], t).is_ok());
        assert!(check(&[f32::INFINITY], &[f64::NEG_INFINITY], t).is_err());
        assert!(check(&[f32::INFINITY], &[1.0], t).is_err());
        assert!(check(&[1.0, 2.0], &[1.0], t).is_err());
        let t = Tolerance { absolute: 0.0, relative: 0.1 };
        assert!(check(&[0.9, 10.0], &[0.0, 10.0], t).is_ok(), "relative to the largest, not to each");
        assert!(check(&[1.1, 10.0], &[0.0, 10.0], t).is_err());
    }
}
