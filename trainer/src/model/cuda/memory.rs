//! The memory that a training will take on a GPU.

use std::collections::BTreeSet;

use infer_core::Config;

use super::layout::{Layout, Parameters, Sizes};
use crate::io::tensors::shapes;
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
    /// Their copies, in the format of activations.
    pub copies: u64,
    /// The gradients of a pass, and their sum over passes.
    pub gradients: u64,
    /// Both moments of AdamW.
    pub moments: u64,
    /// Activations, logits and what else a pass has.
    pub activations: u64,
    /// Three copies of a tensor of each size, which dfdx keeps after a tensor was read, and what
    /// the driver and cuBLAS take.
    pub others: u64,
}

impl GpuMemory {
    /// The driver's context, the kernels and cuBLAS, roughly: seen on an H100.
    const DRIVER: u64 = 600 << 20;

    /// Computes the memory of a training, without that of a teacher's weights. The sums are exact
    /// but for the driver's.
    ///
    /// # Errors
    /// The configuration breaks a rule of [`Config::check`].
    pub fn new(config: &Config, pass: Pass) -> anyhow::Result<GpuMemory> {
        let Pass { sequences, length, dtype, recompute, teacher } = pass;
        let bytes = |words: usize| 4 * words as u64;
        let sizes = shapes(config)?;
        let parameters = sizes.iter().map(|shape| bytes(shape.size())).sum::<u64>();
        let distinct: BTreeSet<u64> = sizes.iter().map(|shape| bytes(shape.size())).collect();
        let sizes = Sizes { config: *config, sequences, length, keep: true, teacher, texts: true, dtype, recompute };
        Ok(GpuMemory {
            weights: parameters,
            copies: bytes(Parameters::new(config, 0, dtype).words),
            gradients: parameters + bytes(Parameters::new(config, 0, Dtype::Float32).words),
            moments: 2 * parameters,
            activations: bytes(Layout::new(&sizes, 0).words),
            others: 3 * distinct.iter().sum::<u64>() + GpuMemory::DRIVER,
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let GpuMemory { weights, copies, gradients, moments, activations, others } = self;
        weights + copies + gradients + moments + activations + others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration of 7B that people train fits a GPU of 141 GB in bfloat16 if activations
    /// are computed again, and not without that.
    #[test]
    fn seven_billion_parameters_fit_a_large_gpu() {
        let config = Config::new(4096, 11008, 32, 32, 32000, 4096).with_kv_heads(8).with_own_classifier();
        let memory = |recompute| {
            let (dtype, teacher) = (Dtype::Bfloat16, false);
            GpuMemory::new(&config, Pass { sequences: 1, length: 4096, dtype, recompute, teacher }).unwrap()
        };
        let (kept, again) = (memory(false), memory(true));
        println!("{kept:?}: {}\n{again:?}: {}", kept.total(), again.total());
        assert_eq!(again.weights, 4 * 5_933_109_248);
        assert!(again.total() < 141_000_000_000 && kept.total() > 141_000_000_000);
    }
}
