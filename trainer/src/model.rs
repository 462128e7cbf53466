//! The model that is trained: Llama-2 with tied or own classifier, generic over dfdx's devices.
//!
//! ```text
//! Batch ── loss_and_gradients ──> loss, Gradients ── clip ──> AdamW::step ──> Llama
//! ```
//!
//! On a CPU ([`cpu`]) weights are dfdx's tensors, and everything from tokens to loss is one
//! operation on its tape. On a GPU (`cuda`) all weights are one array, which own kernels read and
//! update: dfdx's tape would need the gradients of a pass beside their sum over passes. The same
//! model composed of dfdx's operations ([`composed`]) is the CPU's oracle in tests.

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
mod rates;
mod rope;
#[cfg(test)]
mod tests;

pub use batch::{Batch, IGNORED, Options, Teacher};
pub use bytes::CpuMemory;
pub use cuda::{GpuMemory, Pass};
#[cfg(feature = "cuda")]
pub use cuda::{Nccl, gpu_number, open_gpu};
pub use device::Matrix;
pub use llama::{Adapters, AllReduce, Backend, Gradients, Llama, Parameter};
pub use optimizer::{AdamW, clip_gradients};
pub use precision::{Dtype, MatmulPrecision};
pub use rates::Rates;
