//! The rotary position embedding.

use infer_core::{Config, RopeScaling};

/// cos and sin of the rotary angles, `(length, head_size / 2)`.
pub(super) fn rope_tables(config: &Config, length: usize) -> (Vec<f32>, Vec<f32>) {
    let (rope, head_size) = (config.rope, config.head_size());
    let frequency = |pair: usize| match rope.scaling {
        RopeScaling::None => f64::from(rope.theta).powf(-2.0 * pair as f64 / head_size as f64),
        _ => f64::from(rope.frequency(pair, head_size)), // the rules of scaling are infer-core's
    };
    let frequencies: Vec<f64> = (0..head_size / 2).map(frequency).collect();
    let angles = (0..length).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}
