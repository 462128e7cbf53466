//! The precision of matrix products.

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

impl MatmulPrecision {
    /// The name of what multiplies on a GPU.
    pub fn on_gpu(self) -> &'static str {
        if self == MatmulPrecision::Medium { "TF32" } else { "f32" }
    }
}
