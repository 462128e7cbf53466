//! The factor that keeps gradients in float16 above its smallest number.

use serde::{Deserialize, Serialize};

/// Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740), with the factors of PyTorch's
/// GradScaler. A step whose gradients overflow is skipped and halves the scale; many steps without
/// an overflow double it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor of the loss.
    pub scale: f32,
    /// Steps since the scale was changed.
    pub steps: u32,
    /// Steps skipped so far.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { scale: 65536.0, steps: 0, skipped: 0 }
    }
}

impl LossScale {
    const GROWTH_INTERVAL: u32 = 2000;
    /// No f32 that is halved or doubled between these becomes 0 or infinite.
    const SMALLEST: f32 = 1.0 / (1u64 << 40) as f32;
    const LARGEST: f32 = (1u64 << 40) as f32;

    /// Takes note of a step's gradients. Returns whether the step can be taken.
    pub fn update(&mut self, are_finite: bool) -> bool {
        if are_finite {
            self.steps += 1;
            if self.steps == LossScale::GROWTH_INTERVAL {
                (self.scale, self.steps) = ((self.scale * 2.0).min(LossScale::LARGEST), 0);
            }
        } else {
            (self.scale, self.steps) = (self.scale / 2.0, 0);
            self.skipped += 1;
        }
        are_finite
    }

    /// Whether no scale keeps the gradients finite: the training diverges.
    pub fn is_used_up(&self) -> bool {
        self.scale < LossScale::SMALLEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_skips_and_halves_and_patience_doubles() {
        let mut scale = LossScale::default();
        assert!(!scale.update(false));
        assert_eq!(scale, LossScale { scale: 32768.0, steps: 0, skipped: 1 });
        assert!((1..2000).all(|_| scale.update(true)) && scale.scale == 32768.0);
        assert!(scale.update(true));
        assert_eq!(scale, LossScale { scale: 65536.0, steps: 0, skipped: 1 });
        while !scale.is_used_up() {
            scale.update(false);
        }
        assert!(scale.scale > 0.0);
    }
}
