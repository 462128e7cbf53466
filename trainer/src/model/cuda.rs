//! Training on an NVIDIA GPU: dfdx's device, memory and stream, own kernels, and cuBLAS's products.
//!
//! ```text
//! backend ── tokens ──> step ─────┐
//!         ── gradients ──> update ┴─ kernels, products ──> gpu ──> driver ──> libraries
//!            gradients of all ranks ── sum ──> nccl ─────────────────────────────┘
//! ```
//!
//! `step` and `update` ask a [`gpu::Gpu`] for everything. Without a GPU the tests give them one
//! that compiles the kernels (the .cu files) as C++ and runs them on the processor (`shim/shim.h`).

#[cfg(feature = "cuda")]
mod backend;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(any(feature = "cuda", test))]
mod gpu;
#[cfg(any(feature = "cuda", test))]
mod kernels;
// Without a GPU only its sizes are asked for, by a plan.
#[cfg_attr(not(any(feature = "cuda", test)), allow(dead_code))]
mod layout;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod libraries;
mod memory;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(feature = "cuda")]
mod ptx;
#[cfg(any(feature = "cuda", test))]
mod step;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests;
#[cfg(any(feature = "cuda", test))]
mod update;

#[cfg(feature = "cuda")]
pub use driver::open_gpu;
pub use memory::{GpuMemory, Pass};
#[cfg(feature = "cuda")]
pub use nccl::{Nccl, gpu_number};
