//! Rotary position embeddings: the angles by which positions turn queries and keys.
//!
//! Everything but [`Rope::frequency`] is `const`, as in `config.rs`.

use crate::error::Error;

/// What sets the angle of each pair of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rope {
    /// Base of the angles per position: 10,000 in Llama 2, 500,000 in Llama 3.
    pub theta: f32,
    /// How a model was stretched to more positions than it was first trained for.
    pub scaling: RopeScaling,
}

/// How angles are made smaller for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All angles are divided by the factor (position interpolation, Chen et al., 2023).
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Llama 3.1's rule: pairs that turn slowly are divided by the factor, fast ones are left
    /// alone, and those between are mixed of both.
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Pairs with fewer turns than this within `original_seq_len` positions are slow.
        low_freq_factor: f32,
        /// Pairs with more turns than this are fast.
        high_freq_factor: f32,
        /// Positions of the first training.
        original_seq_len: usize,
    },
}

impl Rope {
    /// Llama 2's, and that of every plain llama2.c file: base 10,000, no scaling.
    pub const LLAMA2: Rope = Rope { theta: 10000.0, scaling: RopeScaling::None };

    /// Another base, without scaling.
    pub const fn new(theta: f32) -> Rope {
        Rope { theta, scaling: RopeScaling::None }
    }

    /// The same with this scaling.
    pub const fn with_scaling(mut self, scaling: RopeScaling) -> Rope {
        self.scaling = scaling;
        self
    }

    /// The angle per position of pair `i` of a head: `theta^(-2i / head_size)`, scaled.
    pub fn frequency(&self, i: usize, head_size: usize) -> f32 {
        let freq = 1.0 / libm::powf(self.theta, (2 * i) as f32 / head_size as f32);
        match self.scaling {
            RopeScaling::None => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len } => {
                let positions = original_seq_len as f32;
                let wavelength = core::f32::consts::TAU / freq;
                if wavelength < positions / high_freq_factor {
                    freq
                } else if wavelength > positions / low_freq_factor {
                    freq / factor
                } else {
                    let turns = positions / wavelength;
                    let fast = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - fast) * freq / factor + fast * freq
                }
            }
        }
    }

    /// Checks the rules that the computation relies on.
    ///
    /// # Errors
    /// [`Error::Setting`] with the offending value.
    pub const fn check(&self) -> Result<(), Error> {
        // A NaN fails every comparison, hence the form of the conditions.
        if !(self.theta >= 1.0 && self.theta < f32::INFINITY) {
            return setting("rope_theta", self.theta, "it must be at least 1 and finite");
        }
        let factor = match self.scaling {
            RopeScaling::None => return Ok(()),
            RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } => factor,
        };
        if !(factor >= 1.0 && factor < f32::INFINITY) {
            return setting("rope scaling factor", factor, "it must be at least 1 and finite");
        }
        if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, original_seq_len, .. } = self.scaling {
            if !(low_freq_factor > 0.0 && low_freq_factor < high_freq_factor) {
                return setting("low_freq_factor", low_freq_factor, "it must be above 0 and below high_freq_factor");
            }
            if high_freq_factor >= f32::INFINITY {
                return setting("high_freq_factor", high_freq_factor, "it must be finite");
            }
            if original_seq_len == 0 || original_seq_len > i32::MAX as usize {
                let value = original_seq_len as f32;
                return setting("original_seq_len", value, "it must be at least 1 and below 2^31");
            }
        }
        Ok(())
    }
}

pub(crate) const fn setting(name: &'static str, value: f32, rule: &'static str) -> Result<(), Error> {
    Err(Error::Setting { name, value: value as f64, rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula of Llama 3.1 in f64.
    fn llama3(i: usize, head_size: usize) -> f64 {
        let freq = 500_000f64.powf(-2.0 * i as f64 / head_size as f64);
        let turns = 8192.0 * freq / core::f64::consts::TAU;
        match (turns - 1.0) / 3.0 {
            slow if slow < 0.0 => freq / 8.0,
            fast if fast > 1.0 => freq,
            mix => (1.0 - mix) * freq / 8.0 + mix * freq,
        }
    }

    #[test]
    fn frequencies_follow_the_formulas() {
        assert_eq!(Rope::LLAMA2.frequency(0, 8), 1.0);
        assert!((Rope::LLAMA2.frequency(3, 8) - 0.001).abs() < 1e-9);
        let linear = Rope::LLAMA2.with_scaling(RopeScaling::Linear { factor: 4.0 });
        assert_eq!(linear.frequency(1, 8) * 4.0, Rope::LLAMA2.frequency(1, 8));
        let (low_freq_factor, high_freq_factor, original_seq_len) = (1.0, 4.0, 8192);
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor, high_freq_factor, original_seq_len };
        let rope = Rope::new(500_000.0).with_scaling(scaling);
        let mut kinds = [0; 3];
        for i in 0..64 {
            let (got, want) = (f64::from(rope.frequency(i, 128)), llama3(i, 128));
            assert!((got / want - 1.0).abs() < 1e-6, "{i}: {got} {want}");
            let ratio = 500_000f64.powf(-2.0 * i as f64 / 128.0) / want;
            kinds[if ratio < 1.0001 { 0 } else { 1 + usize::from(ratio > 7.999) }] += 1;
        }
        assert!(kinds.iter().all(|n| *n > 3), "{kinds:?}");
    }

    #[test]
    fn impossible_values_are_refused() {
        let with = |scaling| Rope::LLAMA2.with_scaling(scaling);
        let llama3 = |factor, low_freq_factor, high_freq_factor, original_seq_len| {
            with(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len })
        };
        assert_eq!(llama3(8.0, 1.0, 4.0, 8192).check(), Ok(()));
        for rope in [
            Rope::new(0.0),
            Rope::new(f32::NAN),
            Rope::new(f32::INFINITY),
            with(RopeScaling::Linear { factor: 0.5 }),
            with(RopeScaling::Linear { factor: f32::NAN }),
            llama3(f32::INFINITY, 1.0, 4.0, 8192),
            llama3(8.0, 4.0, 4.0, 8192),
            llama3(8.0, f32::NAN, 4.0, 8192),
            llama3(8.0, 1.0, f32::INFINITY, 8192),
            llama3(8.0, 1.0, 4.0, 0),
        ] {
            assert!(matches!(rope.check(), Err(Error::Setting { .. })), "{rope:?}");
        }
    }
}
