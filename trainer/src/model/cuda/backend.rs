//! dfdx's tensors and tape around a step.

use std::sync::Arc;

use anyhow::ensure;
use cudarc::driver::DevicePtr;
use dfdx::prelude::{Cuda, PutTape, Rank0, Storage, Tape, Tensor, TensorFromVec};

use super::driver::{Block, Driver};
use super::gpu::{Arg, Gpu, Memory, THREADS};
use super::layout::{Layout, Parameters, Sizes};
use super::step::Step;
use crate::io::tensors::Shape;
use crate::model::batch::{Batch, IGNORED, Options};
use crate::model::device::{Buffer, Gradients, combine, device_error};
use crate::model::llama::{Backend, Llama, Parameter};
use crate::model::precision::MatmulPrecision;

/// Most sums that the squares of a parameter's gradient are added in.
const MOST_SUMS: usize = 1024;

/// Memory that a model keeps from step to step.
#[derive(Default)]
pub struct Workspace {
    driver: Option<Arc<Driver>>,
    weights: Vec<Buffer<Cuda>>, // copies: dfdx does not tell where a tensor is
    memory: Option<Block>,
    gradients: Option<Block>,
    squares: Option<Block>, // the sums of all parameters
}

impl Workspace {
    fn driver(&mut self, model: &Llama<Cuda>, precision: MatmulPrecision) -> anyhow::Result<Arc<Driver>> {
        let driver = match self.driver.take() {
            Some(driver) if driver.precision == precision => driver,
            // Another precision needs no other kernels, but it is rare.
            _ => Arc::new(Driver::new(&model.device, model.config.head_size(), precision)?),
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
        for (i, Parameter { shape, tensor }) in model.parameters.iter().enumerate() {
            if i == self.weights.len() {
                self.weights.push(model.device.try_alloc_len(shape.size()).map_err(device_error::<Cuda>)?);
            }
            combine(&model.device, &mut self.weights[i], 0.0, tensor.clone(), 1.0).map_err(device_error::<Cuda>)?;
        }
        let weights: Vec<u64> = self.weights.iter().map(|w| *w.device_ptr()).collect();
        let words = Layout::new(&sizes, 0).words;
        let memory = at_least(driver, &mut self.memory, words)?;
        let (layout, weights) = (Layout::new(&sizes, memory), Parameters::new(&model.config, &shapes(model), &weights));
        Ok(Step { gpu: driver, sizes, layout, weights, options })
    }
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

fn shapes(model: &Llama<Cuda>) -> Vec<Shape> {
    model.parameters.iter().map(|p| p.shape).collect()
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
        let driver = workspace.driver(model, model.matmul_precision)?;
        let sizes = Sizes {
            config: model.config,
            sequences: batch.sequences,
            length: batch.length,
            keep: T::OWNS_TAPE,
            teacher: options.teacher.is_some(),
            texts: batch.starts.is_some(),
        };
        let mut gradients = None;
        if T::OWNS_TAPE {
            let words = model.parameter_count();
            let address = at_least(&driver, &mut workspace.gradients, words)?;
            driver.clear(address, words).map_err(device_error::<Self>)?;
            gradients = workspace.gradients.take();
        }
        let parameters = gradients.as_ref().map(|g| {
            let addresses = addresses(model, g.address());
            Parameters::new(&model.config, &shapes(model), &addresses)
        });
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
        let driver = workspace.driver(model, model.matmul_precision)?;
        let sizes = Sizes { config: model.config, sequences, length, keep: false, teacher: false, texts: false };
        let step = workspace.step(&driver, model, sizes, Options::default())?;
        step.logits(tokens).map_err(device_error::<Self>)
    }

    fn sum_of_squares(model: &Llama<Self>, gradients: &mut Gradients<Self>) -> anyhow::Result<f64> {
        let mut workspace = model.workspace.lock().expect("no thread panics in a step");
        let driver = workspace.driver(model, model.matmul_precision)?;
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
        let driver =
            model.workspace.lock().expect("no thread panics in a step").driver(model, model.matmul_precision)?;
        for parameter in &model.parameters {
            let gradient = *gradients.get_or_alloc_mut(&parameter.tensor).map_err(device_error::<Self>)?.device_ptr();
            let n = parameter.shape.size();
            let args = [Arg::Address(gradient), Arg::F32(factor), Arg::Address(n as u64)];
            driver.launch("scale", [n.div_ceil(THREADS), 1, 1], &args).map_err(device_error::<Self>)?;
        }
        Ok(())
    }
}

/// The address of each parameter's part of the gradients.
fn addresses(model: &Llama<Cuda>, base: u64) -> Vec<u64> {
    let mut address = base;
    let next = |shape: Shape| {
        let this = address;
        address += 4 * shape.size() as u64;
        this
    };
    shapes(model).into_iter().map(next).collect()
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
    let addresses = addresses(model, gradients.address());
    let parameters: Vec<_> = model.parameters.iter().map(|p| (p.shape.size(), p.tensor.ghost())).collect();
    let (workspace, loss) = (model.workspace.clone(), loss.ghost());
    tape.add_backward_op(move |all| {
        let upstream = *all.get_or_alloc_mut(&loss)?.device_ptr();
        for ((n, ghost), gradient) in parameters.iter().zip(addresses) {
            let sum = *all.get_or_alloc_mut(ghost)?.device_ptr();
            let args = [sum, upstream, gradient, *n as u64].map(Arg::Address);
            driver.launch("add_scaled", [n.div_ceil(THREADS), 1, 1], &args)?;
        }
        workspace.lock().expect("no thread panics in a step").gradients = Some(gradients);
        Ok(())
    });
}
