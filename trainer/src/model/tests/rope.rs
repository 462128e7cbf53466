//! Rotary embeddings and norms beside the composed model and infer-core.

use infer_core::{Rope, RopeScaling};

use super::*;

/// Other angles and epsilons than Llama 2's reach every place that has them.
#[test]
fn rope_and_epsilon_come_from_the_config() {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len: 16 };
    let plain = Case::new(TINY, 2, 37).cpu(&Options::default()).0;
    for (rope, eps) in [
        (Rope::new(500_000.0), 1e-5),
        (Rope::LLAMA2.with_scaling(RopeScaling::Linear { factor: 4.0 }), 1e-5),
        (Rope::new(500_000.0).with_scaling(scaling), 1e-5),
        (Rope::LLAMA2, 0.3),
    ] {
        let config = Config::new(32, 24, 2, 2, 19, 70).with_rope(rope).with_norm_eps(eps);
        let case = Case::new(config, 2, 37);
        let (loss, gradients) = case.cpu(&Options::default());
        let (expected_loss, expected) = case.composed(&Options::default());
        assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss}");
        case.assert_close(&gradients, &expected, 2e-5);
        agrees_with_infer_core(&case);
        assert!((loss - plain).abs() > 1e-3, "{rope:?} and {eps} change nothing");
    }
}
