//! Training on an NVIDIA GPU: the model composed of dfdx's operations.

use dfdx::prelude::{Cuda, Rank0, SumTo, Tape, Tensor};

use super::batch::{Batch, Options};
use super::composed;
use super::device::{Gradients, Matrix, device_error};
use super::llama::{Backend, Llama};

impl Backend for Cuda {
    type Workspace = ();

    fn loss<T: Tape<f32, Self>>(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        tape: T,
    ) -> anyhow::Result<Tensor<Rank0, f32, Self, T>> {
        composed::loss(model, batch, options, tape).map_err(device_error::<Self>)
    }

    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        composed::logits_vec(model, tokens, sequences, length).map_err(device_error::<Self>)
    }

    fn sum_of_squares(gradients: &mut Gradients<Self>, parameter: &Matrix<Self>) -> anyhow::Result<f64> {
        let squares = gradients.get(parameter).try_square().map_err(device_error::<Self>)?;
        let sum: Tensor<Rank0, f32, Self> = squares.try_sum().map_err(device_error::<Self>)?;
        Ok(f64::from(sum.as_vec()[0]))
    }
}
