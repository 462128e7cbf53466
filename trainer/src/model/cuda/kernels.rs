//! The source of the kernels.

use super::step::split;
use crate::model::precision::Dtype;

/// All kernels, in one program for models of a head size and a number format.
pub fn source(head_size: usize, dtype: Dtype) -> String {
    const FILES: [&str; 9] = [
        include_str!("common.cu"),
        include_str!("embedding.cu"),
        include_str!("rmsnorm.cu"),
        include_str!("rope.cu"),
        include_str!("attention.cu"),
        include_str!("swiglu.cu"),
        include_str!("loss.cu"),
        include_str!("vectors.cu"),
        include_str!("update.cu"),
    ];
    let defines = [("HEAD_SIZE", head_size), ("SPLIT", split(head_size)), ("DTYPE", dtype as usize)];
    let defines: String = defines.iter().map(|(name, value)| format!("#define {name} {value}\n")).collect();
    defines + &FILES.concat()
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
    "cast",
    "sum_of_squares",
    "adamw",
];

/// Writes the kernels for the step `cuda` of ci.sh, which counts their registers.
#[test]
#[ignore = "for the step `cuda` of ci.sh: KERNELS names a folder"]
fn write_the_kernels() {
    let folder = std::path::PathBuf::from(std::env::var_os("KERNELS").expect("KERNELS names a folder"));
    for head_size in [8, 48, 64, 128] {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let name = format!("{head_size}-{}.cu", dtype.on_gpu(Default::default()));
            std::fs::write(folder.join(name), source(head_size, dtype)).unwrap();
        }
    }
}
