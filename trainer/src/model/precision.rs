//! Number formats, and the precision of matrix products.

/// The precision of matrix products, by PyTorch's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// f32: 24 bits
    #[default]
    Highest,
    /// On a processor with AMX two bf16 for each number, 16 bits, and sums in f32; else as highest
    High,
    /// On a GPU TF32, 11 bits, and sums in f32; else as high
    Medium,
}

/// The number format that products, and the activations between them, are computed in. Weights,
/// their gradients and moments, norms, softmax, losses and sums are f32 in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// 24 bits of precision
    #[default]
    Float32,
    /// 8 bits of precision, and the range of f32
    Bfloat16,
    /// 11 bits of precision, and numbers up to 65,504: it needs a
    /// [`LossScale`](crate::io::loss_scale::LossScale)
    Float16,
}

impl Dtype {
    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        if matches!(self, Dtype::Float32) { 4 } else { 2 }
    }

    /// The name of what a GPU multiplies.
    pub const fn on_gpu(self, precision: MatmulPrecision) -> &'static str {
        match (self, precision) {
            (Dtype::Float32, MatmulPrecision::Medium) => "TF32",
            (Dtype::Float32, _) => "f32",
            (Dtype::Bfloat16, _) => "bf16",
            (Dtype::Float16, _) => "f16",
        }
    }
}
