use dfdx::prelude::{Cpu, NoneTape};
use infer_core::{Config, WeightType};

use super::*;

/// Grouped queries, a length that is no multiple of anything, an ignored target.
const TINY: Config = Config {
    dim: 16,
    hidden_dim: 24,
    n_layers: 2,
    n_heads: 4,
    n_kv_heads: 2,
    vocab_size: 19,
    seq_len: 24,
    shared_classifier: true,
    weights: WeightType::F32,
};

#[test]
fn learns() {
    let device = Cpu::default();
    let mut model = Llama::init(TINY, &device, 1).unwrap();
    let mut adam = AdamW::new(&model, [0.9, 0.95], 0.1).unwrap();
    let tokens: Vec<u32> = (0..2 * 11).map(|i| i * 7 % 19).collect();
    let targets: Vec<u32> = (0..2 * 11).map(|i| if i == 5 { IGNORED } else { (i + 1) * 7 % 19 }).collect();
    let batch = Batch { tokens: &tokens, targets: &targets, sequences: 2, length: 11 };
    let first = model.loss(&batch).unwrap();
    for _ in 0..50 {
        let mut gradients = model.zero_gradients().unwrap();
        model.loss_and_gradients(&batch, &Options::default(), 1.0, &mut gradients).unwrap();
        clip_gradients(&model, &mut gradients, 1.0).unwrap();
        adam.step(&mut model, 1e-2, &mut gradients).unwrap();
    }
    let last = model.loss(&batch).unwrap();
    assert!(last < 0.3 * first, "{first} {last}");
    let direct = composed::loss(&model, &batch, &Options::default(), NoneTape).unwrap().as_vec()[0];
    assert!((direct - last).abs() < 1e-5, "{direct} {last}");
}
