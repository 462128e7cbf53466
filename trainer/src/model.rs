//! The model that is trained: Llama-2 with tied or own classifier, in dfdx tensors, generic over
//! the device.
//!
//! ```text
//! Batch ── loss_and_gradients ──> loss, Gradients ── clip ──> AdamW::step ──> Llama
//! ```
//!
//! On a CPU everything from tokens to loss is one operation on dfdx's tape ([`cpu`]); on CUDA the
//! model is composed of dfdx's operations ([`composed`]), which are also the oracle of [`cpu`] in
//! tests.

mod batch;
mod bytes;
pub mod composed;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod dropout;
mod llama;
mod optimizer;
mod precision;
mod rope;
#[cfg(test)]
mod tests;

pub use batch::{Batch, IGNORED, Options, Teacher};
pub use bytes::training_bytes;
pub use device::{Gradients, Matrix};
pub use llama::{Backend, Llama, Parameter};
pub use optimizer::{AdamW, clip_gradients};
pub use precision::MatmulPrecision;
