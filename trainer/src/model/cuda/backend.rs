//! The weights, gradients and moments of a model in dfdx's memory, and the steps that use them.

use std::ops::Range;
use std::sync::Arc;

use anyhow::ensure;
use cudarc::driver::{DevicePtr, DeviceSlice, DriverError};
use dfdx::prelude::{Cuda, CudaError, Storage};
use infer_core::Config;

use super::driver::{Block, Driver};
use super::gpu::{Gpu, Memory};
use super::layout::{Layout, Parameters, Sizes};
use super::step::Step;
use super::update;
use crate::io::tensors::{self, Shape};
use crate::model::batch::{Batch, IGNORED, Options};
use crate::model::device::device_error;
use crate::model::llama::{Backend, Llama, Parameter};
use crate::model::precision::Dtype;
use crate::model::rates::Rates;

/// Numbers on the device. dfdx keeps their memory for the next ones when they are dropped.
type Numbers = <Cuda as Storage<f32>>::Vec;

/// The values of a parameter: its part of the array that has all weights, which updates change.
pub struct Part {
    all: Arc<Numbers>,
    range: Range<usize>,
}

/// A number for each weight, in the same place: `unit` times what is in memory.
pub struct Sums {
    numbers: Numbers,
    unit: f32,
}

/// Memory that a model keeps from step to step.
#[derive(Default)]
pub struct Workspace {
    driver: Option<Arc<Driver>>,
    copies: Option<Block>, // of the matrices, in the driver's format
    memory: Option<Block>,
    squares: Option<Block>,
}

impl Workspace {
    /// The kernels for a model as it is set now, and its weights as products take them.
    fn load(&mut self, model: &Llama<Cuda>) -> anyhow::Result<(Arc<Driver>, Parameters)> {
        let Llama { device, config, matmul_precision, dtype, .. } = model;
        let driver = match self.driver.take() {
            Some(driver) if (driver.precision, driver.kind.dtype) == (*matmul_precision, *dtype) => driver,
            // Another precision needs no other kernels, but it is rare.
            _ => {
                self.copies = None;
                Arc::new(Driver::new(device, config.head_size(), *matmul_precision, *dtype)?)
            }
        };
        let driver = self.driver.insert(driver).clone();
        let all = *model.parameters[0].tensor.all.device_ptr();
        let mut weights = Parameters::new(config, all);
        if *dtype != Dtype::Float32 {
            let copies = match self.copies.take() {
                Some(copies) => copies, // updates have kept them
                None => new_copies(&driver, &weights).map_err(device_error::<Cuda>)?,
            };
            weights = weights.with_copies(self.copies.insert(copies).address(), *dtype);
        }
        Ok((driver, weights))
    }

    /// Lays out the memory of a step.
    fn layout(&mut self, driver: &Driver, sizes: &Sizes) -> anyhow::Result<Layout> {
        let words = Layout::new(sizes, 0).words;
        Ok(Layout::new(sizes, at_least(driver, &mut self.memory, words)?))
    }
}

/// Copies of the matrices in the driver's format.
fn new_copies(driver: &Driver, weights: &Parameters) -> Result<Block, CudaError> {
    let copies = driver.alloc(weights.matrices * driver.kind.dtype.bytes() / 4)?;
    update::copy(driver, &weights.with_copies(copies.address(), driver.kind.dtype))?;
    Ok(copies)
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

/// Zeros on the device.
fn zeros(device: &Cuda, numbers: usize) -> anyhow::Result<Numbers> {
    device.try_alloc_len(numbers).map_err(device_error::<Cuda>)
}

fn read(from: &Numbers, range: &Range<usize>, to: &mut [f32]) -> anyhow::Result<()> {
    from.device().dtoh_sync_copy_into(&from.slice(range.clone()), to).map_err(failed)
}

fn write(to: &mut Numbers, range: &Range<usize>, from: &[f32]) -> anyhow::Result<()> {
    to.device().htod_sync_copy_into(from, &mut to.slice_mut(range.clone())).map_err(failed)
}

fn failed(error: DriverError) -> anyhow::Error {
    device_error::<Cuda>(error.into())
}

impl Sums {
    pub(super) fn address(&self) -> u64 {
        *self.numbers.device_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

/// Computes the loss of a batch, and adds its gradients times a scale to sums.
fn loss(
    model: &Llama<Cuda>,
    batch: &Batch,
    options: &Options,
    gradients: Option<(&mut Sums, f32)>,
) -> anyhow::Result<f32> {
    let mut workspace = model.workspace.lock().expect("no thread panics in a step");
    let sizes = Sizes {
        config: model.config,
        sequences: batch.sequences,
        length: batch.length,
        keep: gradients.is_some(),
        teacher: options.teacher.is_some(),
        texts: batch.starts.is_some(),
        dtype: model.dtype,
        recompute: model.recompute,
    };
    let (driver, weights) = workspace.load(model)?;
    let layout = workspace.layout(&driver, &sizes)?;
    let scale = gradients.as_ref().map_or(0.0, |(sums, scale)| scale / sums.unit);
    let sums = gradients.map(|(sums, _)| Parameters::new(&model.config, sums.address()));
    let step = Step { gpu: &*driver, sizes, layout, weights, options: *options, scale };
    let sum = step.loss(batch, sums.as_ref()).map_err(device_error::<Cuda>)?;
    let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
    Ok((sum / counted as f64) as f32)
}

impl Backend for Cuda {
    type Workspace = Workspace;
    type Tensor = Part;
    type Gradients = Sums;

    fn parameters(
        &self,
        config: &Config,
        shapes: Vec<Shape>,
        mut values: impl FnMut(&Shape) -> Vec<f32>,
    ) -> anyhow::Result<Vec<Parameter<Self>>> {
        let is_weights = shapes == tensors::shapes(config)?;
        ensure!(is_weights, "adapters train on a CPU: a GPU trains all weights so far");
        let places = Parameters::new(config, 0);
        let range = |shape: &Shape| {
            let first = places.address(shape) as usize / size_of::<f32>();
            first..first + shape.size()
        };
        let mut all = zeros(self, places.numbers())?;
        for shape in &shapes {
            write(&mut all, &range(shape), &values(shape))?;
        }
        let all = Arc::new(all);
        let parameter = |shape| Parameter { shape, tensor: Part { all: all.clone(), range: range(&shape) } };
        Ok(shapes.into_iter().map(parameter).collect())
    }

    fn values(of: &Parameter<Self>) -> anyhow::Result<Vec<f32>> {
        let mut values = vec![0.0; of.shape.size()];
        read(&of.tensor.all, &of.tensor.range, &mut values)?;
        Ok(values)
    }

    fn gradients(model: &Llama<Self>, unit: f32) -> anyhow::Result<Sums> {
        Ok(Sums { numbers: zeros(&model.device, Parameters::new(&model.config, 0).numbers())?, unit })
    }

    fn loss(model: &Llama<Self>, batch: &Batch) -> anyhow::Result<f32> {
        loss(model, batch, &Options::default(), None)
    }

    fn loss_and_gradients(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        scale: f32,
        gradients: &mut Sums,
    ) -> anyhow::Result<f32> {
        loss(model, batch, options, Some((gradients, scale)))
    }

    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        let mut workspace = model.workspace.lock().expect("no thread panics in a step");
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
        let (driver, weights) = workspace.load(model)?;
        let layout = workspace.layout(&driver, &sizes)?;
        let step = Step { gpu: &*driver, sizes, layout, weights, options: Options::default(), scale: 0.0 };
        step.logits(tokens).map_err(device_error::<Self>)
    }

    fn free_memory(&self) -> Option<u64> {
        cudarc::driver::result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn sum_of_squares(model: &Llama<Self>, gradients: &mut Sums) -> anyhow::Result<f64> {
        let mut workspace = model.workspace.lock().expect("no thread panics in a step");
        let (driver, _) = workspace.load(model)?;
        let numbers = gradients.len();
        let memory = at_least(&driver, &mut workspace.squares, update::sums(numbers))?;
        let sum = update::sum_of_squares(&*driver, gradients.address(), numbers, memory);
        Ok(sum.map_err(device_error::<Self>)? * f64::from(gradients.unit).powi(2))
    }

    fn scale(_: &Llama<Self>, gradients: &mut Sums, factor: f32) -> anyhow::Result<()> {
        gradients.unit *= factor;
        Ok(())
    }

    fn read_gradient(of: &Parameter<Self>, gradients: &mut Sums, to: &mut [f32]) -> anyhow::Result<()> {
        read(&gradients.numbers, &of.tensor.range, to)?;
        to.iter_mut().for_each(|x| *x *= gradients.unit);
        Ok(())
    }

    fn write_gradient(of: &Parameter<Self>, gradients: &mut Sums, from: &[f32]) -> anyhow::Result<()> {
        let from: Vec<f32> = from.iter().map(|x| x / gradients.unit).collect();
        write(&mut gradients.numbers, &of.tensor.range, &from)
    }

    fn adam(
        model: &mut Llama<Self>,
        rates: &Rates,
        moments: &mut [Sums; 2],
        gradients: &mut Sums,
    ) -> anyhow::Result<()> {
        let (driver, weights) = model.workspace.lock().expect("no thread panics in a step").load(model)?;
        let moments = moments.each_ref().map(Sums::address);
        let gradients = (gradients.address(), gradients.unit);
        update::adamw(&*driver, &weights, moments, gradients, rates).map_err(device_error::<Self>)
    }
}
