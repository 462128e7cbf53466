//! The source of the kernels.

use super::step::split;

/// All kernels, in one program for models of a head size.
pub fn source(head_size: usize) -> String {
    const FILES: [&str; 8] = [
        include_str!("common.cu"),
        include_str!("embedding.cu"),
        include_str!("rmsnorm.cu"),
        include_str!("rope.cu"),
        include_str!("attention.cu"),
        include_str!("swiglu.cu"),
        include_str!("loss.cu"),
        include_str!("vectors.cu"),
    ];
    format!("#define HEAD_SIZE {head_size}\n#define SPLIT {}\n{}", split(head_size), FILES.concat())
}

/// The names of the kernels.
pub const NAMES: [&str; 17] = [
    "embedding",
    "embedding_backward",
    "residual_rmsnorm",
    "rmsnorm_backward",
    "rmsnorm_weight_backward",
    "add_parts",
    "rope",
    "attention",
    "attention_backward_q",
    "attention_backward_kv",
    "swiglu",
    "swiglu_backward",
    "loss",
    "drop",
    "add_scaled",
    "sum_of_squares",
    "scale",
];
