//! The whole model as one operation on dfdx's tape, for the CPU: the path that trains.
//!
//! Forward and backward run together, layer by layer. The gradients wait in memory until dfdx's
//! backward multiplies them by the gradient of the loss that arrives. Nothing else needs the
//! activations, so that their memory stays from step to step.
//!
//! ```text
//! rows   x ── rmsnorm, transpose ─> xb                   a task: a block of positions
//! heads  xb ─ wq wk wv, rope ─> qkv ─ attention ─> att   a task: a key/value head of a sequence
//! rows   x + att wo ─> x2 ─ rmsnorm, w13, SwiGLU, w2 ─> x   a task: a block of positions
//! ```
//!
//! Backward runs the three stages in reverse. A task on rows takes one part (several blocks) and
//! sums the weights' gradients over it; the parts are added in the end. Every task writes memory of
//! its own and sums in an order that depends on the shapes alone: results do not depend on the
//! number of threads.
//!
//! The files, from the bottom: `buffer`, `mat` and `math` (memory, views of matrices, vector
//! arithmetic), `products` and `amx`, `sizes` (how a step is cut into tasks), `weights` and
//! `adapters`, `gradients`, `rope` and `attention`, `layer` and `loss`, `workspace` and `step`.

mod adapters;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "cpu/no_amx.rs"]
mod amx;
mod attention;
mod buffer;
mod chunks;
mod gradients;
mod layer;
mod loss;
mod mat;
mod math;
mod products;
mod rope;
mod sizes;
mod step;
mod weights;
mod workspace;

use dfdx::prelude::{AdamConfig, Cpu, Rank0, Tape, Tensor};

use super::batch::{Batch, Options};
use super::device::{Buffer, Gradients, Matrix, device_error};
use super::llama::{Backend, Llama};

impl Backend for Cpu {
    type Workspace = workspace::Workspace;

    fn loss<T: Tape<f32, Self>>(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        tape: T,
    ) -> anyhow::Result<Tensor<Rank0, f32, Self, T>> {
        step::loss(model, batch, options, tape)
    }

    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        step::logits(model, tokens, sequences, length)
    }

    fn keep_parameters(_: &Llama<Self>, all: Gradients<Self>) -> anyhow::Result<Gradients<Self>> {
        Ok(all) // intermediate results are two scalars, not worth an allocation
    }

    fn sum_of_squares(model: &Llama<Self>, gradients: &mut Gradients<Self>) -> anyhow::Result<f64> {
        let sums = model.trained().iter().map(|parameter| {
            let gradient = gradients.get_or_alloc_mut(&parameter.tensor).map_err(device_error::<Self>)?;
            Ok(chunks::sum_of_squares(gradient))
        });
        sums.sum()
    }

    fn scale(model: &Llama<Self>, gradients: &mut Gradients<Self>, factor: f32) -> anyhow::Result<()> {
        for parameter in model.trained() {
            chunks::scale(gradients.get_or_alloc_mut(&parameter.tensor).map_err(device_error::<Self>)?, factor);
        }
        Ok(())
    }

    fn read_gradient(of: &Matrix<Self>, gradients: &mut Gradients<Self>, to: &mut [f32]) -> anyhow::Result<()> {
        to.copy_from_slice(gradients.get_or_alloc_mut(of).map_err(device_error::<Self>)?);
        Ok(())
    }

    fn write_gradient(of: &Matrix<Self>, gradients: &mut Gradients<Self>, from: &[f32]) -> anyhow::Result<()> {
        gradients.get_or_alloc_mut(of).map_err(device_error::<Self>)?.copy_from_slice(from);
        Ok(())
    }

    fn adam(
        adam: &AdamConfig,
        step: u32,
        parameter: &mut Matrix<Self>,
        [moment1, moment2]: [&mut Buffer<Self>; 2],
        gradient: &Buffer<Self>,
        scratch: &mut Vec<f32>,
    ) -> Result<(), Self::Err> {
        // dfdx lets a tensor be copied out and in, no more.
        scratch.resize(gradient.len(), 0.0);
        parameter.copy_into(scratch);
        chunks::adam(adam, step, scratch, moment1, moment2, gradient);
        parameter.copy_from(scratch);
        Ok(())
    }
}
