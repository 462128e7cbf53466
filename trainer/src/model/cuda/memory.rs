//! The memory that a training will take on a GPU.

use infer_core::Config;

use super::layout::{Layout, Parameters, Sizes};
use crate::model::precision::Dtype;

/// A forward and backward pass, as far as its memory depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Windows.
    pub sequences: usize,
    /// Tokens of a window.
    pub length: usize,
    /// The format of activations.
    pub dtype: Dtype,
    /// Whether activations are computed again in backward.
    pub recompute: bool,
    /// Whether a teacher's logits are there.
    pub teacher: bool,
}

/// Bytes of a training on a GPU, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// The weights.
    pub weights: u64,
    /// Copies of the matrices, where activations have 16 bits.
    pub copies: u64,
    /// The gradients.
    pub gradients: u64,
    /// Both moments of AdamW.
    pub moments: u64,
    /// Activations, logits and what else a pass has.
    pub activations: u64,
    /// What the driver, the kernels and cuBLAS take, roughly: seen on an H100.
    pub driver: u64,
}

impl GpuMemory {
    /// Computes the memory of a training, without that of a teacher's weights. The sums are exact
    /// but for the driver's.
    ///
    /// # Errors
    /// The configuration breaks a rule of [`Config::check`].
    pub fn new(config: &Config, pass: Pass) -> anyhow::Result<GpuMemory> {
        let Pass { sequences, length, dtype, recompute, teacher } = pass;
        let bytes = |words: usize| 4 * words as u64;
        config.check()?;
        let all = Parameters::new(config, 0);
        let parameters = bytes(all.numbers());
        let sizes = Sizes { config: *config, sequences, length, keep: true, teacher, texts: true, dtype, recompute };
        Ok(GpuMemory {
            weights: parameters,
            copies: if dtype == Dtype::Float32 { 0 } else { (dtype.bytes() * all.matrices) as u64 },
            gradients: parameters,
            moments: 2 * parameters,
            activations: bytes(Layout::new(&sizes, 0).words),
            driver: 600 << 20,
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let GpuMemory { weights, copies, gradients, moments, activations, driver } = self;
        weights + copies + gradients + moments + activations + driver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration of 7B that people train leaves room on a GPU of 141 GB, in bfloat16 and in
    /// float32, and more if activations are computed again.
    #[test]
    fn seven_billion_parameters_fit_a_large_gpu() {
        const N: u64 = 5_933_109_248;
        let config = Config::new(4096, 11008, 32, 32, 32000, 4096).with_kv_heads(8).with_own_classifier();
        let memory = |dtype, recompute| {
            GpuMemory::new(&config, Pass { sequences: 1, length: 4096, dtype, recompute, teacher: false }).unwrap()
        };
        let half = memory(Dtype::Bfloat16, false);
        assert_eq!((half.weights, half.gradients, half.moments), (4 * N, 4 * N, 8 * N));
        assert_eq!(half.copies, 2 * (N - 65 * 4096)); // norms have none
        assert_eq!(memory(Dtype::Float32, false).copies, 0);
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            let totals = [true, false].map(|recompute| memory(dtype, recompute).total());
            assert!(totals[0] < 112_000_000_000 && totals[1] < 124_000_000_000, "{dtype:?}: {totals:?}");
        }
    }
}
