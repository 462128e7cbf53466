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

use dfdx::prelude::{
    Backward, Cpu, Gradients, NoneTape, OwnedTape, PutTape, Rank0, SplitTape, Tensor, TensorFromVec, Trace, ZerosTensor,
};
use infer_core::Config;

use super::batch::{Batch, Options};
use super::device::{Matrix, device_error};
use super::llama::{Backend, Llama, Parameter};
use super::rates::Rates;
use crate::io::tensors::Shape;

impl Backend for Cpu {
    type Workspace = workspace::Workspace;
    type Tensor = Matrix<Cpu>;
    type Gradients = Gradients<f32, Cpu>;

    fn parameters(
        &self,
        _: &Config,
        shapes: Vec<Shape>,
        mut values: impl FnMut(&Shape) -> Vec<f32>,
    ) -> anyhow::Result<Vec<Parameter<Self>>> {
        let parameters = shapes.into_iter().map(|shape| {
            let tensor = self.try_tensor_from_vec(values(&shape), (shape.rows, shape.cols));
            Ok(Parameter { shape, tensor: tensor.map_err(device_error::<Self>)? })
        });
        parameters.collect()
    }

    fn values(of: &Parameter<Self>) -> anyhow::Result<Vec<f32>> {
        Ok(of.tensor.as_vec())
    }

    fn gradients(model: &Llama<Self>, _: f32) -> anyhow::Result<Self::Gradients> {
        let mut gradients = Gradients::leaky();
        for parameter in model.trained() {
            gradients.try_alloc_for(&parameter.tensor).map_err(device_error::<Self>)?;
        }
        Ok(gradients)
    }

    fn loss(model: &Llama<Self>, batch: &Batch) -> anyhow::Result<f32> {
        Ok(step::loss(model, batch, &Options::default(), NoneTape)?.as_vec()[0])
    }

    fn loss_and_gradients(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        scale: f32,
        gradients: &mut Self::Gradients,
    ) -> anyhow::Result<f32> {
        let so_far = std::mem::replace(gradients, Gradients::leaky());
        let start: Tensor<Rank0, f32, Cpu> = model.device.try_zeros().map_err(device_error::<Self>)?;
        let (_, tape) = start.traced(so_far).split_tape();
        let (loss, tape): (_, OwnedTape<f32, Cpu>) = step::loss(model, batch, options, tape)?.split_tape();
        let value = loss.as_vec()[0];
        // Those of intermediate results stay: two scalars, not worth an allocation.
        *gradients = (loss.put_tape(tape) * scale).try_backward().map_err(device_error::<Self>)?;
        Ok(value)
    }

    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        step::logits(model, tokens, sequences, length)
    }

    fn sum_of_squares(model: &Llama<Self>, gradients: &mut Self::Gradients) -> anyhow::Result<f64> {
        let sums = model.trained().iter().map(|parameter| {
            let gradient = gradients.get_or_alloc_mut(&parameter.tensor).map_err(device_error::<Self>)?;
            Ok(chunks::sum_of_squares(gradient))
        });
        sums.sum()
    }

    fn scale(model: &Llama<Self>, gradients: &mut Self::Gradients, factor: f32) -> anyhow::Result<()> {
        for parameter in model.trained() {
            chunks::scale(gradients.get_or_alloc_mut(&parameter.tensor).map_err(device_error::<Self>)?, factor);
        }
        Ok(())
    }

    fn read_gradient(of: &Parameter<Self>, gradients: &mut Self::Gradients, to: &mut [f32]) -> anyhow::Result<()> {
        to.copy_from_slice(gradients.get_or_alloc_mut(&of.tensor).map_err(device_error::<Self>)?);
        Ok(())
    }

    fn write_gradient(of: &Parameter<Self>, gradients: &mut Self::Gradients, from: &[f32]) -> anyhow::Result<()> {
        gradients.get_or_alloc_mut(&of.tensor).map_err(device_error::<Self>)?.copy_from_slice(from);
        Ok(())
    }

    fn adam(
        model: &mut Llama<Self>,
        rates: &Rates,
        [moment1, moment2]: &mut [Self::Gradients; 2],
        gradients: &mut Self::Gradients,
    ) -> anyhow::Result<()> {
        let workspace = model.workspace.clone();
        let values = &mut workspace.lock().expect("no thread panics in a step").values;
        let failed = device_error::<Self>;
        for Parameter { shape, tensor } in model.trained_mut() {
            let rates = if shape.is_norm() { Rates { decay: 0.0, ..*rates } } else { *rates };
            let m = moment1.get_or_alloc_mut(tensor).map_err(failed)?;
            let v = moment2.get_or_alloc_mut(tensor).map_err(failed)?;
            let gradient = gradients.get_or_alloc_mut(tensor).map_err(failed)?;
            // dfdx lets a tensor be copied out and in, no more.
            values.resize(shape.size(), 0.0);
            tensor.copy_into(values);
            chunks::adam(&rates, values, m, v, gradient);
            tensor.copy_from(values);
        }
        Ok(())
    }
}
