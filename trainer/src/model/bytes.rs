//! The memory that a training will take on a CPU.

use infer_core::Config;

/// Estimates the bytes of the weights, of the optimiser's moments, and of the activations of
/// `sequences` windows of `length` tokens. With the rank of adapters, those have the moments. The
/// sums are f64, which no setting overflows.
pub fn training_bytes(config: &Config, sequences: usize, length: usize, lora_rank: Option<usize>) -> f64 {
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
    // Weights, gradients and both moments; in `cpu` again weights, transposed weights and
    // gradients; and a checkpoint's copies while it is written.
    const COPIES: f64 = 10.0;
    // Weights under adapters; in `cpu` with the adapters added, and transposed; and the merged
    // model, its file and that file's copy while it answers a question.
    const FROZEN_COPIES: f64 = 6.0;
    // Parts of a layer's gradients, before they are added.
    const PARTS: f64 = 16.0;
    let (weights, adapters) = match lora_rank {
        None => (COPIES * parameters + PARTS * layer, 0.0),
        Some(rank) => {
            let adapters = rank as f64 * (4.0 * dim + 2.0 * (dim + kv_dim) + 3.0 * (dim + hidden_dim));
            (FROZEN_COPIES * parameters, (COPIES * n_layers + PARTS) * adapters)
        }
    };

    let qkv = dim + 2.0 * kv_dim;
    let kept = qkv + dim + n_heads + dim + 2.0 * hidden_dim + dim;
    let scratch = 5.0 * dim + qkv;
    let logits = (vocab_size * positions).min((1u32 << 24) as f64 + 128.0 * vocab_size);
    4.0 * (weights + adapters + positions * (n_layers * kept + scratch) + logits)
}
