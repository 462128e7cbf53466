//! The numbers of an update, which all devices compute with.

/// What one update multiplies by. The kernels have the same struct.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Rates {
    /// Decay rates of the first and the second moment.
    pub betas: [f32; 2],
    /// Factors of the moments, as those begin with 0.
    pub corrections: [f32; 2],
    /// The learning rate.
    pub lr: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// The share of a matrix that decays.
    pub decay: f32,
}
