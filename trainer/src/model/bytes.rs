//! The memory that a training will take on a CPU.

use infer_core::Config;

/// Bytes of a training on a CPU, by purpose: estimates. They are f64, which no setting overflows.
#[derive(Clone, Copy, Debug)]
pub struct CpuMemory {
    /// The weights, and adapters.
    pub weights: f64,
    /// The weights as products take them: with adapters added, and transposed.
    pub copies: f64,
    /// The gradients: their sum, and those of a pass in several parts.
    pub gradients: f64,
    /// Both moments of AdamW.
    pub moments: f64,
    /// What backward needs of each layer, and what one layer needs.
    pub activations: f64,
    /// The logits of the rows that are in memory together.
    pub logits: f64,
    /// Copies while a checkpoint or a model is written.
    pub saving: f64,
}

impl CpuMemory {
    /// Estimates the memory for `sequences` windows of `length` tokens. With the rank of adapters,
    /// those have the gradients and moments.
    pub fn new(config: &Config, sequences: usize, length: usize, lora_rank: Option<usize>) -> CpuMemory {
        let [dim, hidden_dim, n_layers, n_heads, kv_dim, vocab_size, sequences, length] = [
            config.dim,
            config.hidden_dim,
            config.n_layers,
            config.n_heads,
            config.kv_dim(),
            config.vocab_size,
            sequences,
            length,
        ]
        .map(|n| n as f64);
        let positions = sequences * length;

        let layer = 2.0 * dim + dim * (2.0 * dim + 2.0 * kv_dim + 3.0 * hidden_dim);
        let tables = if config.shared_classifier { 1.0 } else { 2.0 };
        let parameters = tables * vocab_size * dim + n_layers * layer + dim;
        // Parts of a layer's gradients, before they are added.
        const PARTS: f64 = 16.0;
        let (frozen, trained, parts) = match lora_rank {
            None => (0.0, parameters, PARTS * layer),
            Some(rank) => {
                let adapters = rank as f64 * (4.0 * dim + 2.0 * (dim + kv_dim) + 3.0 * (dim + hidden_dim));
                (parameters, n_layers * adapters, PARTS * adapters)
            }
        };

        let qkv = dim + 2.0 * kv_dim;
        let kept = qkv + dim + n_heads + dim + 2.0 * hidden_dim + dim;
        let scratch = 5.0 * dim + qkv;
        CpuMemory {
            weights: 4.0 * (frozen + trained),
            copies: 4.0 * 2.0 * (frozen + trained),
            gradients: 4.0 * (2.0 * trained + parts),
            moments: 4.0 * 2.0 * trained,
            activations: 4.0 * positions * (n_layers * kept + scratch),
            logits: 4.0 * (vocab_size * positions).min((1u32 << 24) as f64 + 128.0 * vocab_size),
            saving: 4.0 * 3.0 * (frozen + trained),
        }
    }

    /// All of it.
    pub fn total(&self) -> f64 {
        let CpuMemory { weights, copies, gradients, moments, activations, logits, saving } = self;
        weights + copies + gradients + moments + activations + logits + saving
    }
}
