//! dfdx's tensors and tape around a step.

use std::sync::Arc;

use anyhow::ensure;
use cudarc::driver::DevicePtr;
use dfdx::prelude::{Cuda, CudaError, HasShape, PutTape, Rank0, Shape as _, Storage, Tape, Tensor, TensorFromVec};

use super::driver::{Block, Driver};
use super::gpu::{Arg, Gpu, Memory, THREADS};
use super::layout::{Layout, Parameters, Sizes};
use super::step::Step;
use crate::model::batch::{Batch, IGNORED, Options};
use crate::model::device::{Buffer, Gradients, Matrix, combine, device_error};
use crate::model::llama::{Backend, Llama, Parameter};
use crate::model::precision::Dtype;

/// Most sums that the squares of a parameter's gradient are added in.
const MOST_SUMS: usize = 1024;

/// Memory that a model keeps from step to step.
#[derive(Default)]
pub struct Workspace {
    driver: Option<Arc<Driver>>,
    weights: Option<Block>, // copies: dfdx does not tell where a tensor is
    memory: Option<Block>,
    gradients: Option<Block>,
    squares: Option<Block>, // the sums of all parameters
}

impl Workspace {
    /// The kernels for a model as it is set now.
    fn driver(&mut self, model: &Llama<Cuda>) -> anyhow::Result<Arc<Driver>> {
        let Llama { device, config, matmul_precision, dtype, .. } = model;
        let driver = match self.driver.take() {
            Some(driver) if (driver.precision, driver.dtype) == (*matmul_precision, *dtype) => driver,
            // Another precision needs no other kernels, but it is rare.
            _ => Arc::new(Driver::new(device, config.head_size(), *matmul_precision, *dtype)?),
        };
        Ok(self.driver.insert(driver).clone())
    }

    /// Copies the weights and lays out the memory of a step.
    fn step<'a>(
        &mut self,
        driver: &'a Driver,
        model: &Llama<Cuda>,
        sizes: Sizes,
        options: Options<'a>,
    ) -> anyhow::Result<Step<'a, Driver>> {
        let words = Parameters::new(&model.config, 0, model.dtype).words;
        let weights = Parameters::new(&model.config, at_least(driver, &mut self.weights, words)?, model.dtype);
        for Parameter { shape, tensor } in &model.parameters {
            let copy = copy_of(model, tensor).map_err(device_error::<Cuda>)?;
            let (from, to, n) = (*copy.device_ptr(), weights.address(shape), shape.size());
            let copied = if shape.is_norm() || model.dtype == Dtype::Float32 {
                driver.copy(to, from, n)
            } else {
                driver.launch("cast", [n.div_ceil(THREADS), 1, 1], &[to, from, n as u64].map(Arg::Address))
            };
            copied.map_err(device_error::<Cuda>)?;
        }
        let words = Layout::new(&sizes, 0).words;
        let layout = Layout::new(&sizes, at_least(driver, &mut self.memory, words)?);
        Ok(Step { gpu: driver, sizes, layout, weights, options, loss_scale: model.loss_scale })
    }
}

/// A copy of a tensor. It is given back to dfdx's cache when it is dropped, and what is launched
/// later writes there only after what was launched before has read it.
fn copy_of(model: &Llama<Cuda>, tensor: &Matrix<Cuda>) -> Result<Buffer<Cuda>, CudaError> {
    let mut copy = model.device.try_alloc_len(tensor.shape().num_elements())?;
    combine(&model.device, &mut copy, 0.0, tensor.clone(), 1.0)?;
    Ok(copy)
}

/// The address of so many words, which are allocated if there are fewer.
fn at_least(driver: &Driver, memory: &mut Option<Block>, words: usize) -> anyhow::Result<u64> {
    if let Some(memory) = memory
        && memory.words() >= words
    {
        return Ok(memory.address());
    }
    *memory = None; // first, or both would be in memory
    Ok(memory.insert(driver.alloc(words).map_err(device_error::<Cuda>)?).address())
}

impl Backend for Cuda {
    type Workspace = Workspace;

    fn loss<T: Tape<f32, Self>>(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        mut tape: T,
    ) -> anyhow::Result<Tensor<Rank0, f32, Self, T>> {
        ensure!(model.adapters.is_none(), "adapters train on a CPU: a GPU trains all weights so far");
        let mut workspace = model.workspace.lock().expect("no thread panics in a step");
        let driver = workspace.driver(model)?;
        let sizes = Sizes {
            config: model.config,
            sequences: batch.sequences,
            length: batch.length,
            keep: T::OWNS_TAPE,
            teacher: options.teacher.is_some(),
            texts: batch.starts.is_some(),
            dtype: model.dtype,
            recompute: model.recompute,
        };
        let mut gradients = None;
        if T::OWNS_TAPE {
            let words = Parameters::new(&model.config, 0, Dtype::Float32).words;
            let address = at_least(&driver, &mut workspace.gradients, words)?;
            driver.clear(address, words).map_err(device_error::<Self>)?;
            gradients = workspace.gradients.take();
        }
        let at = |block: &Block| Parameters::new(&model.config, block.address(), Dtype::Float32);
        let parameters = gradients.as_ref().map(at);
        let step = workspace.step(&driver, model, sizes, *options)?;
        let sum = step.loss(batch, parameters.as_ref()).map_err(device_error::<Self>)?;
        let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
        let loss = vec![(sum / counted as f64) as f32];
        let loss = model.device.try_tensor_from_vec(loss, ()).map_err(device_error::<Self>)?;
        if let Some(gradients) = gradients {
            add_in_backward(model, driver, &mut tape, &loss, gradients);
        }
        Ok(loss.put_tape(tape))
    }

    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        let mut workspace = model.workspace.lock().expect("no thread panics in a step");
        let driver = workspace.driver(model)?;
        let sizes = Sizes {
            config: model.config,
            sequences,
            length,
            keep: false,
            teacher: true,
            texts: false,
            dtype: model.dtype,
            recompute: false,
        };
        let step = workspace.step(&driver, model, sizes, Options::default())?;
        step.logits(tokens).map_err(device_error::<Self>)
    }

    fn keep_parameters(_: &Llama<Self>, all: Gradients<Self>) -> anyhow::Result<Gradients<Self>> {
        Ok(all) // intermediate results are two scalars, and the gradients would be there a third time
    }

    fn free_memory(&self) -> Option<u64> {
        cudarc::driver::result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn sum_of_squares(model: &Llama<Self>, gradients: &mut Gradients<Self>) -> anyhow::Result<f64> {
        let mut workspace = model.workspace.lock().expect("no thread panics in a step");
        let driver = workspace.driver(model)?;
        let sums = |parameter: &Parameter<Self>| parameter.shape.size().div_ceil(16 * THREADS).min(MOST_SUMS);
        let words = model.parameters.iter().map(sums).sum();
        let squares = at_least(&driver, &mut workspace.squares, words)?;
        let failed = device_error::<Self>;
        let mut next = squares;
        for parameter in &model.parameters {
            let gradient = *gradients.get_or_alloc_mut(&parameter.tensor).map_err(failed)?.device_ptr();
            let args = [next, gradient, parameter.shape.size() as u64].map(Arg::Address);
            driver.launch("sum_of_squares", [sums(parameter), 1, 1], &args).map_err(failed)?;
            next += 4 * sums(parameter) as u64;
        }
        let mut sums = vec![0.0; words];
        driver.download(squares, &mut sums).map_err(failed)?;
        Ok(sums.into_iter().map(f64::from).sum())
    }

    fn scale(model: &Llama<Self>, gradients: &mut Gradients<Self>, factor: f32) -> anyhow::Result<()> {
        let driver = model.workspace.lock().expect("no thread panics in a step").driver(model)?;
        for parameter in &model.parameters {
            let gradient = *gradients.get_or_alloc_mut(&parameter.tensor).map_err(device_error::<Self>)?.device_ptr();
            let n = parameter.shape.size();
            let args = [Arg::Address(gradient), Arg::F32(factor), Arg::Address(n as u64)];
            driver.launch("scale", [n.div_ceil(THREADS), 1, 1], &args).map_err(device_error::<Self>)?;
        }
        Ok(())
    }
}

/// Adds an operation to the tape. In backward it multiplies these gradients by that of the loss and
/// adds them to the parameters' gradients.
fn add_in_backward<T: Tape<f32, Cuda>>(
    model: &Llama<Cuda>,
    driver: Arc<Driver>,
    tape: &mut T,
    loss: &Tensor<Rank0, f32, Cuda>,
    gradients: Block,
) {
    let at = Parameters::new(&model.config, gradients.address(), Dtype::Float32);
    let parameters = model.parameters.iter().map(|p| (p.shape.size(), p.tensor.ghost(), at.address(&p.shape)));
    let parameters: Vec<_> = parameters.collect();
    let (workspace, loss, unscaled) = (model.workspace.clone(), loss.ghost(), 1.0 / model.loss_scale);
    tape.add_backward_op(move |all| {
        let upstream = *all.get_or_alloc_mut(&loss)?.device_ptr();
        for (n, ghost, gradient) in &parameters {
            let sum = *all.get_or_alloc_mut(ghost)?.device_ptr();
            let [sum, upstream, gradient, size] = [sum, upstream, *gradient, *n as u64].map(Arg::Address);
            let args = [sum, upstream, Arg::F32(unscaled), gradient, size];
            driver.launch("add_scaled", [n.div_ceil(THREADS), 1, 1], &args)?;
        }
        workspace.lock().expect("no thread panics in a step").gradients = Some(gradients);
        Ok(())
    });
}
