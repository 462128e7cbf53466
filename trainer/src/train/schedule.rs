//! The learning rate of each step.

use crate::train::settings::Settings;

/// The learning rate of step `iter`, as in llama2.c: it rises linearly from 0 over `warmup_iters`
/// steps, then falls along half a cosine to `min_lr`.
pub fn learning_rate(settings: &Settings, iter: u64) -> f64 {
    let Settings { learning_rate, min_lr, warmup_iters, max_iters, .. } = *settings;
    if !settings.decay_lr {
        return learning_rate;
    }
    if iter < warmup_iters {
        return learning_rate * iter as f64 / warmup_iters as f64;
    }
    if iter >= max_iters {
        return min_lr;
    }
    let progress = (iter - warmup_iters) as f64 / (max_iters - warmup_iters) as f64;
    min_lr + 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) * (learning_rate - min_lr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::settings::tests::parse;

    #[test]
    fn warms_up_then_falls_to_the_minimum() {
        let flags = ["--learning-rate=1e-2", "--min-lr=1e-3", "--warmup-iters=10", "--max-iters=110"];
        let settings = parse(&flags).unwrap();
        let close = |iter, lr: f64| assert!((learning_rate(&settings, iter) - lr).abs() < 1e-12, "{iter}");
        close(0, 0.0);
        close(5, 5e-3);
        close(10, 1e-2);
        close(60, 5.5e-3);
        close(110, 1e-3);
        close(500, 1e-3);
        let constant = parse(&["--decay-lr=false"]).unwrap();
        assert_eq!(learning_rate(&constant, 0), constant.learning_rate);
    }
}
