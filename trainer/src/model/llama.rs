//! The model and the trait of the devices that train it.

use std::sync::{Arc, Mutex};

use anyhow::ensure;
use dfdx::prelude::{Cpu, Device};
use infer_core::format::TensorName;
use infer_core::{Config, WeightType};

use super::batch::{Batch, Options, check_tokens};
use super::device::Matrix;
use super::precision::{Dtype, MatmulPrecision};
use super::rates::Rates;
use crate::io::lora::Lora;
use crate::io::tensors::{Shape, shapes};

/// A device that trains models.
pub trait Backend: Device<f32> {
    /// Memory that a model keeps from step to step.
    type Workspace: Default + Send;
    /// The values of a parameter, (rows, cols).
    type Tensor;
    /// A number for each number that is trained: gradients, or a moment of theirs.
    type Gradients;

    /// Puts parameters on the device: all weights of a model, or its adapters. A function gives the
    /// values for each shape, one after the other.
    fn parameters(
        &self,
        config: &Config,
        shapes: Vec<Shape>,
        values: impl FnMut(&Shape) -> Vec<f32>,
    ) -> anyhow::Result<Vec<Parameter<Self>>>;

    /// Copies the values of a parameter to the host.
    fn values(of: &Parameter<Self>) -> anyhow::Result<Vec<f32>>;

    /// Makes gradients of zero. A device may count them in multiples of `unit`.
    fn gradients(model: &Llama<Self>, unit: f32) -> anyhow::Result<Self::Gradients>;

    /// Computes the loss of a checked batch.
    fn loss(model: &Llama<Self>, batch: &Batch) -> anyhow::Result<f32>;

    /// Computes the loss of a checked batch, and adds `scale` times its gradients to `gradients`.
    fn loss_and_gradients(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        scale: f32,
        gradients: &mut Self::Gradients,
    ) -> anyhow::Result<f32>;

    /// Computes the logits of checked tokens, `(sequences * length, vocab_size)`.
    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>>;

    /// Bytes that are free on a device with memory of its own.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Sums the squares of all gradients.
    fn sum_of_squares(model: &Llama<Self>, gradients: &mut Self::Gradients) -> anyhow::Result<f64>;

    /// Multiplies all gradients by `factor`.
    fn scale(model: &Llama<Self>, gradients: &mut Self::Gradients, factor: f32) -> anyhow::Result<()>;

    /// Copies the gradient of a parameter to the host.
    fn read_gradient(of: &Parameter<Self>, gradients: &mut Self::Gradients, to: &mut [f32]) -> anyhow::Result<()>;

    /// Replaces the gradient of a parameter.
    fn write_gradient(of: &Parameter<Self>, gradients: &mut Self::Gradients, from: &[f32]) -> anyhow::Result<()>;

    /// Updates what is trained, and its first and second moments, by AdamW. Norms do not decay.
    fn adam(
        model: &mut Llama<Self>,
        rates: &Rates,
        moments: &mut [Self::Gradients; 2],
        gradients: &mut Self::Gradients,
    ) -> anyhow::Result<()>;
}

/// The devices of all ranks, which sum gradients among themselves.
pub trait AllReduce<D: Backend> {
    /// Replaces gradients by their sum over all ranks, which call this together and get the same
    /// bits.
    ///
    /// # Errors
    /// A device or the connection fails. Other ranks may wait for this one then.
    fn sum(&self, gradients: &mut Gradients<D>) -> anyhow::Result<()>;
}

/// Accumulated gradients of what a model trains, as [`Llama::zero_gradients`] makes them.
pub type Gradients<D> = <D as Backend>::Gradients;

/// One weight tensor of one layer.
pub struct Parameter<D: Backend> {
    /// The name, the layer and the size.
    pub shape: Shape,
    /// The values, which [`Backend::values`] copies.
    pub tensor: D::Tensor,
}

/// The adapters of a model on a device; see [`Lora`].
pub struct Adapters<D: Backend> {
    /// Rank and scale.
    pub lora: Lora,
    /// A and B of each matrix in turn, and rows of the classifier, in the order of [`Lora::parts`].
    pub parameters: Vec<Parameter<D>>,
}

/// The parameters of a Llama-2 model on a device.
pub struct Llama<D: Backend> {
    /// Hyperparameters, in infer-core's names.
    pub config: Config,
    /// The device of the tensors.
    pub device: D,
    /// The weights, in the order of [`shapes`].
    pub parameters: Vec<Parameter<D>>,
    /// Adapters, which are then trained in place of the weights.
    pub adapters: Option<Adapters<D>>,
    /// The precision of the loss and its gradients: highest, unless it is set. On a CPU logits
    /// always have the highest.
    pub matmul_precision: MatmulPrecision,
    /// The number format of the loss and its gradients, and on a GPU of logits: f32, unless it is
    /// set.
    pub dtype: Dtype,
    /// The factor of gradients while they are in [`Dtype::Float16`]. It is that of the gradients
    /// that [`zero_gradients`](Self::zero_gradients) makes; what is read of them is unscaled.
    pub loss_scale: f32,
    /// On a GPU, backward computes the activations of each layer again rather than to keep them:
    /// a third more operations, and memory for one layer.
    pub recompute: bool,
    pub(super) workspace: Arc<Mutex<D::Workspace>>,
}

impl<D: Backend> Llama<D> {
    /// Makes a model with llama2.c's initialisation: normal with deviation 0.02, `w3` and `wo` 0.02
    /// / √(2 · n_layers), norms 1.
    ///
    /// # Errors
    /// The configuration breaks a rule of [`Config::check`], or the device has no memory.
    pub fn init(config: Config, device: &D, seed: u64) -> anyhow::Result<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let residual = 0.02 / (2.0 * config.n_layers as f64).sqrt();
        Self::from_fn(config, device, |shape| match shape.name {
            _ if shape.is_norm() => vec![1.0; shape.size()],
            TensorName::Wo | TensorName::W3 => normal(&mut rng, residual, shape.size()),
            _ => normal(&mut rng, 0.02, shape.size()),
        })
    }

    /// Makes a model of given weights, as [`to_vecs`](Self::to_vecs) returns them.
    ///
    /// # Errors
    /// Number or size of the slices is not that of the configuration.
    pub fn from_slices(config: Config, device: &D, weights: &[impl AsRef<[f32]>]) -> anyhow::Result<Self> {
        let shapes = shapes(&config)?;
        ensure!(weights.len() == shapes.len(), "{} tensors given, the model has {}", weights.len(), shapes.len());
        for (weights, &Shape { name, layer, rows, cols }) in weights.iter().zip(&shapes) {
            let n = weights.as_ref().len();
            ensure!(n == rows * cols, "{} of layer {layer} has {n} values, not {rows} x {cols}", name.as_str());
        }
        let mut weights = weights.iter();
        Self::from_fn(config, device, |_| weights.next().map(|w| w.as_ref().to_vec()).unwrap_or_default())
    }

    /// Makes a model of the weights of a model file of any version; int8 weights are expanded.
    ///
    /// # Errors
    /// The device has no memory.
    pub fn from_model(model: &infer_core::Model, device: &D) -> anyhow::Result<Self> {
        let config = model.config().with_weights(WeightType::F32);
        let layer = |l| model.layer(l).expect("every layer below n_layers is there");
        Self::from_fn(config, device, |&Shape { name, layer: l, .. }| match name {
            TensorName::TokEmb => expand(model.tok_emb()),
            TensorName::RmsAtt => layer(l).rms_att.to_vec(),
            TensorName::Wq => expand(layer(l).wq),
            TensorName::Wk => expand(layer(l).wk),
            TensorName::Wv => expand(layer(l).wv),
            TensorName::Wo => expand(layer(l).wo),
            TensorName::RmsFfn => layer(l).rms_ffn.to_vec(),
            TensorName::W1 => expand(layer(l).w1),
            TensorName::W2 => expand(layer(l).w2),
            TensorName::W3 => expand(layer(l).w3),
            TensorName::RmsFinal => model.rms_final().to_vec(),
            TensorName::Wcls => expand(model.wcls()),
            TensorName::FreqCisReal | TensorName::FreqCisImag => Vec::new(), // `shapes` leaves them out
        })
    }

    /// Makes a model of the weights that a function gives for each shape, one after the other.
    ///
    /// # Errors
    /// The configuration breaks a rule of [`Config::check`], or the device has no memory.
    ///
    /// # Panics
    /// The function gives another number of weights than the shape has.
    pub fn from_fn(config: Config, device: &D, weights: impl FnMut(&Shape) -> Vec<f32>) -> anyhow::Result<Self> {
        config.check()?;
        let parameters = device.parameters(&config, shapes(&config)?, weights)?;
        Ok(Llama {
            config,
            device: device.clone(),
            parameters,
            adapters: None,
            matmul_precision: MatmulPrecision::default(),
            dtype: Dtype::default(),
            loss_scale: 1.0,
            recompute: false,
            workspace: Arc::default(),
        })
    }

    /// Copies all weights, in the order of [`shapes`].
    ///
    /// # Errors
    /// The device fails.
    pub fn to_vecs(&self) -> anyhow::Result<Vec<Vec<f32>>> {
        self.parameters.iter().map(D::values).collect()
    }

    /// Counts the parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(|p| p.shape.size()).sum()
    }

    /// Makes gradients of zero to accumulate into, of what is [`trained`](Self::trained).
    ///
    /// # Errors
    /// The device has no memory.
    pub fn zero_gradients(&self) -> anyhow::Result<Gradients<D>> {
        self.zero_gradients_of(1)
    }

    /// [`zero_gradients`](Self::zero_gradients) of a step of so many passes. Each counts for its
    /// share only, but computes with about the whole loss scale: 16 bits would lose what is small.
    ///
    /// # Errors
    /// The device has no memory.
    pub fn zero_gradients_of(&self, passes: usize) -> anyhow::Result<Gradients<D>> {
        // A power of two, so that factors round nothing.
        D::gradients(self, 1.0 / (self.loss_scale * passes.next_power_of_two() as f32))
    }

    /// Adds `scale` times the gradients of the batch's loss to `gradients`, and returns the loss,
    /// unscaled.
    ///
    /// The loss is the mean over the batch's targets that are not [`IGNORED`](super::IGNORED). A
    /// step of n micro-batches takes a `scale` of 1 / n.
    ///
    /// # Errors
    /// The batch does not fit the model (sizes, a token outside the vocabulary, no target), or the
    /// device fails.
    pub fn loss_and_gradients(
        &self,
        batch: &Batch,
        options: &Options,
        scale: f32,
        gradients: &mut Gradients<D>,
    ) -> anyhow::Result<f32> {
        batch.check(&self.config, options)?;
        D::loss_and_gradients(self, batch, options, scale, gradients)
    }

    /// Computes the loss without gradients: the mean cross entropy of the targets in nats.
    ///
    /// # Errors
    /// As [`loss_and_gradients`](Self::loss_and_gradients).
    pub fn loss(&self, batch: &Batch) -> anyhow::Result<f32> {
        batch.check(&self.config, &Options::default())?;
        D::loss(self, batch)
    }

    /// Computes the logits of every position, `(sequences * length, vocab_size)`.
    ///
    /// # Errors
    /// The tokens do not fit the model, or the device fails.
    pub fn logits(&self, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        check_tokens(&self.config, tokens, sequences, length)?;
        D::logits(self, tokens, sequences, length)
    }
}

impl Llama<Cpu> {
    /// Finds the tensor of this name and layer.
    pub(super) fn tensor(&self, name: TensorName, layer: usize) -> &Matrix<Cpu> {
        let found = self.parameters.iter().find(|p| p.shape.name == name && p.shape.layer == layer);
        &found.expect("every tensor of shapes() is there").tensor
    }
}

/// Copies weights of a model file as f32.
fn expand(matrix: infer_core::Matrix) -> Vec<f32> {
    match matrix {
        infer_core::Matrix::F32 { w, .. } => w.to_vec(),
        infer_core::Matrix::Q8(m) => {
            let groups = m.q.chunks(m.group_size).zip(m.s);
            groups.flat_map(|(q, s)| q.iter().map(move |q| f32::from(*q) * s)).collect()
        }
    }
}

/// Draws normal deviates by the method of Box and Muller.
pub(super) fn normal(rng: &mut fastrand::Rng, deviation: f64, n: usize) -> Vec<f32> {
    let one = |_| {
        let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
        (deviation * radius * (std::f64::consts::TAU * rng.f64()).cos()) as f32
    };
    (0..n).map(one).collect()
}
