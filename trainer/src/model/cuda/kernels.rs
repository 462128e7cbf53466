//! The source of the kernels.

use crate::model::precision::Dtype;

/// Threads of every block, THREADS in common.cu.
pub const THREADS: usize = 128;
/// Threads of a warp, WARP in common.cu.
pub const WARP: usize = 32;
/// Rows of a block of attention on tensor cores, ROWS in attention_tensor.cu.
const TENSOR_ROWS: usize = 64;

/// What a program of kernels is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub head_size: usize,
    pub dtype: Dtype,
    /// Attention multiplies on tensor cores.
    pub tensor_cores: bool,
}

impl Kind {
    /// The program for a GPU of a compute capability, by its first number.
    pub fn new(head_size: usize, dtype: Dtype, capability: usize) -> Kind {
        // Registers hold rows of so many numbers. A warp multiplies (16, 16) · (16, 8) from 8.0 on.
        Kind { head_size, dtype, tensor_cores: dtype != Dtype::Float32 && head_size <= 128 && capability >= 8 }
    }

    /// Rows of a head, queries or keys, that a block of attention has.
    pub fn attention_rows(&self) -> usize {
        if self.tensor_cores { TENSOR_ROWS } else { THREADS / split(self.head_size) }
    }
}

/// Threads that share a row of attention without tensor cores: as many as leave each 16 dimensions
/// or fewer, if it divides.
fn split(head_size: usize) -> usize {
    let mut split = 1;
    while head_size / split > 16 && head_size.is_multiple_of(2 * split) && split < WARP {
        split *= 2;
    }
    split
}

/// All kernels, in one program.
pub fn source(kind: Kind) -> String {
    const ATTENTION: [&str; 1] = [include_str!("attention.cu")];
    const ON_TENSOR_CORES: [&str; 2] = [include_str!("tensor.cu"), include_str!("attention_tensor.cu")];
    const OTHERS: [&str; 9] = [
        include_str!("common.cu"),
        include_str!("embedding.cu"),
        include_str!("rmsnorm.cu"),
        include_str!("rope.cu"),
        include_str!("swiglu.cu"),
        include_str!("loss.cu"),
        include_str!("vectors.cu"),
        include_str!("update.cu"),
        include_str!("heads.cu"),
    ];
    let attention: &[&str] = if kind.tensor_cores { &ON_TENSOR_CORES } else { &ATTENTION };
    let Kind { head_size, dtype, .. } = kind;
    let defines = [("HEAD_SIZE", head_size), ("SPLIT", split(head_size)), ("DTYPE", dtype as usize)];
    let defines: String = defines.iter().map(|(name, value)| format!("#define {name} {value}\n")).collect();
    defines + &OTHERS.concat() + &attention.concat()
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
            for capability in if dtype == Dtype::Float32 { vec![7] } else { vec![7, 8] } {
                let name = format!("{head_size}-{}-from-{capability}.cu", dtype.on_gpu(Default::default()));
                std::fs::write(folder.join(name), source(Kind::new(head_size, dtype, capability))).unwrap();
            }
        }
    }
}

#[test]
fn threads_of_a_row_divide_the_head() {
    let splits = [2, 8, 16, 24, 34, 48, 64, 96, 128, 250].map(|head_size| (head_size, split(head_size)));
    let expected = [(2, 1), (8, 1), (16, 1), (24, 2), (34, 2), (48, 4), (64, 4), (96, 8), (128, 8), (250, 2)];
    assert_eq!(splits, expected);
}
