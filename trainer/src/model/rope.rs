//! The rotary position embedding.

/// cos and sin of the rotary angles, `(length, head_size / 2)`: theta 10000, as in infer-core.
pub(super) fn rope_tables(length: usize, head_size: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |i: usize| {
        let (position, pair) = (i / (head_size / 2), i % (head_size / 2));
        position as f64 * 10000f64.powf(-2.0 * pair as f64 / head_size as f64)
    };
    (0..length * head_size / 2).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).unzip()
}
