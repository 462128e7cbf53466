//! The model that is trained: Llama-2 with tied or own classifier, in dfdx tensors, generic over
//! the device.
//!
//! ```text
//! Batch ── loss_and_gradients ──> loss, Gradients ── clip ──> AdamW::step ──> Llama
//! ```
//!
//! Everything from tokens to loss is one operation on dfdx's tape, on a CPU ([`cpu`]) and on CUDA
//! (`cuda`). The same model composed of dfdx's operations ([`composed`]) is their oracle in tests.

mod batch;
mod bytes;
pub mod composed;
pub mod cpu;
mod cuda;
mod device;
mod dropout;
mod llama;
mod lora;
mod optimizer;
mod precision;
mod rope;
#[cfg(test)]
mod tests;

pub use batch::{Batch, IGNORED, Options, Teacher};
pub use bytes::CpuMemory;
#[cfg(feature = "cuda")]
pub use cuda::open_gpu;
pub use cuda::{GpuMemory, Pass};
pub use device::{Gradients, Matrix};
pub use llama::{Adapters, Backend, Llama, Parameter};
pub use optimizer::{AdamW, clip_gradients};
pub use precision::{Dtype, MatmulPrecision};
