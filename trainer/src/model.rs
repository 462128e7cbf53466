//! The model that is trained: Llama-2 with tied or own classifier, in dfdx tensors, generic over
//! the device.
//!
//! ```text
//! Batch ── loss_and_gradients ──> loss, Gradients ── clip ──> AdamW::step ──> Llama
//! ```
//!
//! On a CPU everything from tokens to loss is one operation on dfdx's tape ([`fused`]); on CUDA the
//! model is composed of dfdx's operations ([`composed`]), which is also the oracle of the fused one
//! in tests.

pub mod composed;
mod dropout;
pub mod fused;
mod memory;
mod optimizer;

use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
#[cfg(feature = "cuda")]
use dfdx::prelude::SumTo;
use dfdx::prelude::{
    AdamConfig, Backward, Cpu, Device, HasErr, NoneTape, OwnedTape, PutTape, Rank0, SplitTape, Storage, Tape, Tensor,
    Trace,
};
use infer_core::format::TensorName;
use infer_core::{Config, WeightType};

pub use fused::MatmulPrecision;
pub use memory::training_bytes;
pub use optimizer::{AdamW, clip_gradients};

/// Accumulated gradients of a model's parameters; see [`Llama::zero_gradients`].
pub type Gradients<D> = dfdx::prelude::Gradients<f32, D>;
/// A matrix on a device, rows = outputs.
pub type Matrix<D, T = NoneTape> = Tensor<(usize, usize), f32, D, T>;

type Buffer<D> = <D as Storage<f32>>::Vec;

/// The target of a position that does not count.
pub const IGNORED: u32 = u32::MAX;
/// Added to the mean square in rmsnorm, as in infer-core.
const RMS_EPS: f32 = 1e-5;

/// A device that trains.
pub trait Backend: Device<f32> {
    /// What a step keeps for the next one: scratch memory.
    type Workspace: Default + Send;

    /// Loss of a checked batch, with its gradients on `tape`.
    fn loss<T: Tape<f32, Self>>(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        tape: T,
    ) -> anyhow::Result<Tensor<Rank0, f32, Self, T>>;

    /// Logits of checked tokens, `(sequences * length, vocab_size)`.
    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>>;

    /// Drops the gradients of intermediate results.
    fn keep_parameters(model: &Llama<Self>, mut all: Gradients<Self>) -> anyhow::Result<Gradients<Self>> {
        let mut kept = Gradients::leaky();
        for Parameter { tensor, .. } in &model.parameters {
            let wanted = kept.get_or_alloc_mut(tensor).map_err(device_error::<Self>)?;
            std::mem::swap(wanted, all.get_or_alloc_mut(tensor).map_err(device_error::<Self>)?);
        }
        Ok(kept)
    }

    /// Sum of the squares of a parameter's gradient.
    fn sum_of_squares(gradients: &mut Gradients<Self>, parameter: &Matrix<Self>) -> anyhow::Result<f64>;

    /// Multiplies a parameter's gradient.
    fn scale(&self, gradient: &mut Buffer<Self>, factor: f32, parameter: &Matrix<Self>) -> Result<(), Self::Err> {
        optimizer::combine(self, gradient, factor, parameter.clone(), 0.0)
    }

    /// AdamW's update of a parameter, given its moments and gradient. `scratch` is kept from one to
    /// the next.
    fn adam(
        adam: &AdamConfig,
        step: u32,
        parameter: &mut Matrix<Self>,
        [moment1, moment2]: [&mut Buffer<Self>; 2],
        gradient: &Buffer<Self>,
        _scratch: &mut Vec<f32>,
    ) -> Result<(), Self::Err> {
        adam.try_update(step as i32, parameter, moment1, moment2, gradient)
    }
}

impl Backend for Cpu {
    type Workspace = fused::Workspace;

    fn loss<T: Tape<f32, Self>>(
        model: &Llama<Self>,
        batch: &Batch,
        options: &Options,
        tape: T,
    ) -> anyhow::Result<Tensor<Rank0, f32, Self, T>> {
        fused::loss(model, batch, options, tape)
    }

    fn logits(model: &Llama<Self>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        fused::logits(model, tokens, sequences, length)
    }

    fn keep_parameters(_: &Llama<Self>, all: Gradients<Self>) -> anyhow::Result<Gradients<Self>> {
        Ok(all) // of the fused operation they are two scalars, not worth an allocation
    }

    fn sum_of_squares(gradients: &mut Gradients<Self>, parameter: &Matrix<Self>) -> anyhow::Result<f64> {
        let gradient = gradients.get_or_alloc_mut(parameter).map_err(device_error::<Self>)?;
        Ok(fused::sum_of_squares(gradient))
    }

    fn scale(&self, gradient: &mut Buffer<Self>, factor: f32, _: &Matrix<Self>) -> Result<(), Self::Err> {
        fused::scale(gradient, factor);
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
        // A tensor can be copied out and in, no more.
        scratch.resize(gradient.len(), 0.0);
        parameter.copy_into(scratch);
        fused::adam(adam, step, scratch, moment1, moment2, gradient);
        parameter.copy_from(scratch);
        Ok(())
    }
}

#[cfg(feature = "cuda")]
impl Backend for dfdx::prelude::Cuda {
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

/// One weight tensor of one layer.
pub struct Parameter<D: Storage<f32>> {
    /// Which tensor, in infer-core's names.
    pub name: TensorName,
    /// Layer, 0 for the tensors that are there once.
    pub layer: usize,
    /// Outputs of the matrix; 1 for a norm weight.
    pub rows: usize,
    /// Inputs of the matrix.
    pub cols: usize,
    /// Weight decay applies: matrices only.
    pub decay: bool,
    /// (rows, cols)
    pub tensor: Matrix<D>,
}

/// The parameters of a Llama-2 model on a device.
pub struct Llama<D: Backend> {
    /// Hyperparameters, in infer-core's names.
    pub config: Config,
    /// Where the tensors lie.
    pub device: D,
    /// In the order of [`shapes`].
    pub parameters: Vec<Parameter<D>>,
    /// Of the loss and its gradients; highest, unless it is set. Logits are always of highest
    /// precision.
    pub matmul_precision: MatmulPrecision,
    workspace: Arc<Mutex<D::Workspace>>,
}

/// Token windows that are trained on together.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `sequences * length` tokens.
    pub tokens: &'a [u32],
    /// The token after each, or [`IGNORED`].
    pub targets: &'a [u32],
    /// Number of windows.
    pub sequences: usize,
    /// Tokens of a window, at most the model's `seq_len`.
    pub length: usize,
}

/// What changes the loss beside the batch. The default is the plain cross entropy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Probability of dropping an activation, as in llama2.c: after the embedding, in the attention
    /// weights and before both residual additions. 0 drops nothing.
    pub dropout: f32,
    /// Which activations are dropped; a new one for each micro-batch, or the same are dropped
    /// again.
    pub seed: u64,
    /// Distil from this teacher.
    pub teacher: Option<Teacher<'a>>,
}

/// A teacher's opinion on every position of a batch.
///
/// loss = (1 - weight) · cross entropy with the targets + weight · temperature² · KL(teacher ‖
/// student), the KL divergence between both softmax distributions at `temperature`, averaged over
/// the positions that count (Hinton et al. 2015, arXiv:1503.02531).
#[derive(Clone, Copy, Debug)]
pub struct Teacher<'a> {
    /// The teacher's logits, `(sequences * length, vocab_size)`. Rows of ignored positions are not
    /// read.
    pub logits: &'a [f32],
    /// 0 (text only) to 1 (teacher only).
    pub weight: f32,
    /// Softens both distributions; above 0.
    pub temperature: f32,
}

/// Name, layer, rows and columns of every parameter, in the order of [`Llama::parameters`]: that of
/// llama2.c's first format, layer by layer within a stack.
pub fn shapes(config: &Config) -> Vec<(TensorName, usize, usize, usize)> {
    let (dim, hidden_dim, kv_dim) = (config.dim, config.hidden_dim, config.kv_dim());
    let mut shapes = vec![(TensorName::TokEmb, 0, config.vocab_size, dim)];
    for (name, rows, cols) in [
        (TensorName::RmsAtt, 1, dim),
        (TensorName::Wq, dim, dim),
        (TensorName::Wk, kv_dim, dim),
        (TensorName::Wv, kv_dim, dim),
        (TensorName::Wo, dim, dim),
        (TensorName::RmsFfn, 1, dim),
        (TensorName::W1, hidden_dim, dim),
        (TensorName::W2, dim, hidden_dim),
        (TensorName::W3, hidden_dim, dim),
    ] {
        shapes.extend((0..config.n_layers).map(|layer| (name, layer, rows, cols)));
    }
    shapes.push((TensorName::RmsFinal, 0, 1, dim));
    if !config.shared_classifier {
        shapes.push((TensorName::Wcls, 0, config.vocab_size, dim));
    }
    shapes
}

impl<D: Backend> Llama<D> {
    /// A model with llama2.c's initialisation: normal with deviation 0.02, `w3` and `wo` 0.02 / √(2
    /// · n_layers), norms 1.
    ///
    /// # Errors
    /// The configuration breaks a rule of [`Config::check`], or the device has no memory.
    pub fn init(config: Config, device: &D, seed: u64) -> anyhow::Result<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let residual = 0.02 / (2.0 * config.n_layers as f64).sqrt();
        Self::new(config, device, |name, _, n| match name {
            TensorName::RmsAtt | TensorName::RmsFfn | TensorName::RmsFinal => vec![1.0; n],
            TensorName::Wo | TensorName::W3 => normal(&mut rng, residual, n),
            _ => normal(&mut rng, 0.02, n),
        })
    }

    /// A model with given weights, as [`to_vecs`](Self::to_vecs) returns them.
    ///
    /// # Errors
    /// Number or size of the slices is not that of the configuration.
    pub fn from_slices(config: Config, device: &D, weights: &[impl AsRef<[f32]>]) -> anyhow::Result<Self> {
        let shapes = shapes(&config);
        ensure!(weights.len() == shapes.len(), "{} tensors given, the model has {}", weights.len(), shapes.len());
        for (weights, (name, layer, rows, cols)) in weights.iter().zip(&shapes) {
            let n = weights.as_ref().len();
            ensure!(n == rows * cols, "{} of layer {layer} has {n} values, not {rows} x {cols}", name.as_str());
        }
        let mut weights = weights.iter();
        Self::new(config, device, |_, _, _| weights.next().map(|w| w.as_ref().to_vec()).unwrap_or_default())
    }

    /// A model from the weights of a model file of any version; int8 weights are expanded.
    ///
    /// # Errors
    /// The device has no memory.
    pub fn from_model(model: &infer_core::Model, device: &D) -> anyhow::Result<Self> {
        let config = Config { weights: WeightType::F32, ..*model.config() };
        let layer = |l| model.layer(l).expect("every layer below n_layers is there");
        Self::new(config, device, |name, l, _| match name {
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
            TensorName::FreqCisReal | TensorName::FreqCisImag => Vec::new(), // not in shapes()
        })
    }

    fn new(
        config: Config,
        device: &D,
        mut weights: impl FnMut(TensorName, usize, usize) -> Vec<f32>,
    ) -> anyhow::Result<Self> {
        config.check()?;
        let parameters = shapes(&config)
            .into_iter()
            .map(|(name, layer, rows, cols)| {
                let values = weights(name, layer, rows * cols);
                let tensor = device.try_tensor_from_vec(values, (rows, cols)).map_err(device_error::<D>)?;
                Ok(Parameter { name, layer, rows, cols, decay: rows > 1, tensor })
            })
            .collect::<anyhow::Result<_>>()?;
        let matmul_precision = MatmulPrecision::default();
        Ok(Llama { config, device: device.clone(), parameters, matmul_precision, workspace: Arc::default() })
    }

    /// Copies of all weights, in the order of [`shapes`].
    pub fn to_vecs(&self) -> Vec<Vec<f32>> {
        self.parameters.iter().map(|p| p.tensor.as_vec()).collect()
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(|p| p.rows * p.cols).sum()
    }

    /// Empty gradients to accumulate into.
    ///
    /// # Errors
    /// The device has no memory.
    pub fn zero_gradients(&self) -> anyhow::Result<Gradients<D>> {
        let mut gradients = Gradients::leaky();
        for parameter in &self.parameters {
            gradients.try_alloc_for(&parameter.tensor).map_err(device_error::<D>)?;
        }
        Ok(gradients)
    }

    /// Adds `scale` times the gradients of the batch's loss to `gradients`; the loss itself is
    /// returned unscaled.
    ///
    /// The loss is the mean over the batch's targets that are not [`IGNORED`]. `scale` is 1 /
    /// micro-batches of a step.
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
        self.check(batch, options)?;
        let so_far = std::mem::replace(gradients, Gradients::leaky());
        let start: Tensor<Rank0, f32, D> = self.device.try_zeros().map_err(device_error::<D>)?;
        let (_, tape) = start.traced(so_far).split_tape();
        let (loss, tape): (_, OwnedTape<f32, D>) = D::loss(self, batch, options, tape)?.split_tape();
        let value = loss.as_vec()[0];
        let all = (loss.put_tape(tape) * scale).try_backward().map_err(device_error::<D>)?;
        *gradients = D::keep_parameters(self, all)?;
        Ok(value)
    }

    /// Loss without gradients: the mean cross entropy of the targets in nats.
    ///
    /// # Errors
    /// As [`loss_and_gradients`](Self::loss_and_gradients).
    pub fn loss(&self, batch: &Batch) -> anyhow::Result<f32> {
        let options = Options::default();
        self.check(batch, &options)?;
        Ok(D::loss(self, batch, &options, NoneTape)?.as_vec()[0])
    }

    /// Logits `(sequences * length, vocab_size)` of every position.
    ///
    /// # Errors
    /// The tokens do not fit the model, or the device fails.
    pub fn logits(&self, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
        self.check_tokens(tokens, sequences, length)?;
        D::logits(self, tokens, sequences, length)
    }

    fn check(&self, batch: &Batch, options: &Options) -> anyhow::Result<()> {
        self.check_tokens(batch.tokens, batch.sequences, batch.length)?;
        let (n, vocab_size) = (batch.tokens.len(), self.config.vocab_size);
        ensure!(batch.targets.len() == n, "{} targets for {n} tokens", batch.targets.len());
        let outside = batch.targets.iter().find(|t| **t != IGNORED && **t as usize >= vocab_size);
        if let Some(target) = outside {
            bail!(
                "target {target} is outside the model's vocabulary of {vocab_size}: were the shards made with another?"
            );
        }
        ensure!(batch.targets.iter().any(|t| *t != IGNORED), "no target in the batch: every position is ignored");
        ensure!((0.0..1.0).contains(&options.dropout), "dropout is {}, it must be in 0..1", options.dropout);
        if let Some(teacher) = options.teacher {
            let logits = teacher.logits.len();
            ensure!(logits == n * vocab_size, "{logits} logits of the teacher for {n} tokens x {vocab_size}");
            ensure!((0.0..=1.0).contains(&teacher.weight), "teacher weight {} is not in 0..=1", teacher.weight);
            ensure!(teacher.temperature > 0.0, "temperature {} of the teacher is not above 0", teacher.temperature);
        }
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<()> {
        let Config { vocab_size, seq_len, .. } = self.config;
        ensure!(length >= 1 && length <= seq_len, "windows of {length} tokens, the model takes 1 to {seq_len}");
        let n = sequences.checked_mul(length).context("batch too large")?;
        ensure!(sequences >= 1 && tokens.len() == n, "{} tokens given for {sequences} x {length}", tokens.len());
        if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab_size) {
            bail!(
                "token {token} is outside the model's vocabulary of {vocab_size}: were the shards made with another?"
            );
        }
        Ok(())
    }

    /// The tensor of this name and layer.
    fn tensor(&self, name: TensorName, layer: usize) -> &Matrix<D> {
        let found = self.parameters.iter().find(|p| p.name == name && p.layer == layer);
        &found.expect("every tensor of shapes() is there").tensor
    }

    fn classifier(&self) -> &Matrix<D> {
        let shared = self.config.shared_classifier;
        self.tensor(if shared { TensorName::TokEmb } else { TensorName::Wcls }, 0)
    }
}

/// Weights of a model file in f32.
fn expand(matrix: infer_core::Matrix) -> Vec<f32> {
    match matrix {
        infer_core::Matrix::F32 { w, .. } => w.to_vec(),
        infer_core::Matrix::Q8(m) => {
            let groups = m.q.chunks(m.group_size).zip(m.s);
            groups.flat_map(|(q, s)| q.iter().map(move |q| f32::from(*q) * s)).collect()
        }
    }
}

/// dfdx's errors are not `std::error::Error`.
fn device_error<D: HasErr>(error: D::Err) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error}")
}

/// Normal deviates by the method of Box and Muller.
fn normal(rng: &mut fastrand::Rng, deviation: f64, n: usize) -> Vec<f32> {
    let one = |_| {
        let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
        (deviation * radius * (std::f64::consts::TAU * rng.f64()).cos()) as f32
    };
    (0..n).map(one).collect()
}

/// cos and sin of the rotary angles, `(length, head_size / 2)`: theta 10000, as in infer-core.
fn rope_tables(length: usize, head_size: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |i: usize| {
        let (position, pair) = (i / (head_size / 2), i % (head_size / 2));
        position as f64 * 10000f64.powf(-2.0 * pair as f64 / head_size as f64)
    };
    (0..length * head_size / 2).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).unzip()
}

#[cfg(test)]
mod tests;
