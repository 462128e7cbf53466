//! The model composed of dfdx's operations: the oracle of [`cpu`](super::cpu). It computes on a CPU
//! only: on CUDA dfdx 0.13's gradients were wrong (an H100), tok_emb's by 2.6 of 3.0 for a dim of
//! 16 and a vocabulary of 19.

use dfdx::prelude::*;
use infer_core::Config;
use infer_core::format::TensorName;

use super::batch::{Batch, IGNORED, Options};
use super::device::Matrix;
use super::dropout::{Dropout, Place};
use super::llama::Llama;
use super::lora::Adapter;
use super::rope::rope_tables;

/// (sequences, query, key)
type Hidden = Tensor<(usize, usize, usize), f32, Cpu>;
/// (sequences, heads, length, head_size)
type Heads<T> = Tensor<(usize, usize, usize, usize), f32, Cpu, T>;

/// Computes the mean loss of the positions that count; see [`Options`].
///
/// # Errors
/// The device fails.
///
/// # Panics
/// A token is outside the vocabulary. [`Llama`]'s methods check that before.
pub fn loss<T: Tape<f32, Cpu>>(
    model: &Llama<Cpu>,
    batch: &Batch,
    options: &Options,
    tape: T,
) -> Result<Tensor<Rank0, f32, Cpu, T>, CpuError> {
    let logits = logits(model, batch, options, tape)?;
    let shape @ (n, _) = *logits.shape();
    let device = &model.device;
    let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
    let weights = batch.targets.iter().map(|t| if *t == IGNORED { 0.0 } else { 1.0 / counted as f32 }).collect();
    let weights: Tensor<(usize,), f32, Cpu> = device.try_tensor_from_vec(weights, (n,))?;
    let targets = batch.targets.iter().map(|t| if *t == IGNORED { 0 } else { *t as usize }).collect();
    let targets: Tensor<(usize,), usize, Cpu> = device.try_tensor_from_vec(targets, (n,))?;

    let text = |logits: Matrix<Cpu, T>, share: f32| {
        let log_probs: Tensor<(usize,), f32, Cpu, T> = logits.try_log_softmax::<Axis<1>>()?.try_select(targets)?;
        log_probs.try_mul(weights.clone())?.try_sum::<Rank0, _>()?.try_mul(-share)
    };
    let Some(teacher) = options.teacher else { return text(logits, 1.0) };
    let t = teacher.temperature;
    let taught: Matrix<Cpu> = device.try_tensor_from_vec(teacher.logits.to_vec(), shape)?;
    let taught = taught.try_div(t)?.try_log_softmax::<Axis<1>>()?;
    let student = logits.with_empty_tape().try_div(t)?.try_log_softmax::<Axis<1>>()?;
    let divergence: Tensor<(usize,), f32, Cpu, T> =
        student.try_negate()?.try_add(taught.clone())?.try_mul(taught.try_exp()?)?.try_sum::<_, Axis<1>>()?;
    let divergence = divergence.try_mul(weights.clone())?.try_sum::<Rank0, _>()?.try_mul(teacher.weight * t * t)?;
    text(logits, 1.0 - teacher.weight)?.try_add(divergence)
}

/// Computes the logits of every position as a plain vector.
///
/// # Errors
/// As [`loss`].
pub fn logits_vec(model: &Llama<Cpu>, tokens: &[u32], sequences: usize, length: usize) -> Result<Vec<f32>, CpuError> {
    let batch = Batch { tokens, targets: &[], starts: None, sequences, length };
    Ok(logits(model, &batch, &Options::default(), NoneTape)?.as_vec())
}

/// (sequences * length, vocab_size)
fn logits<T: Tape<f32, Cpu>>(
    model: &Llama<Cpu>,
    batch: &Batch,
    options: &Options,
    tape: T,
) -> Result<Matrix<Cpu, T>, CpuError> {
    let indices = batch.tokens.iter().map(|t| *t as usize).collect();
    let indices: Tensor<(usize,), usize, Cpu> = model.device.try_tensor_from_vec(indices, (batch.tokens.len(),))?;
    let (embedding, own_tape) = table::<T>(model, TensorName::TokEmb)?.split_tape();
    let x: Matrix<Cpu, T> = embedding.put_tape(tape.merge(own_tape)).try_gather(indices)?;
    let mut x = dropout(x, options, Place::Embedding, 0)?;
    let hidden = hidden(&model.device, batch)?;
    let eps = model.config.norm_eps;
    for layer in 0..model.config.n_layers {
        let xb = rmsnorm(x.with_empty_tape(), model.tensor(TensorName::RmsAtt, layer), eps)?;
        let xb = attention(model, layer, xb, &hidden, options)?;
        let xb = project(model, xb, TensorName::Wo, layer)?;
        x = x.try_add(dropout(xb, options, Place::AttentionOut, layer)?)?;

        let xb = rmsnorm(x.with_empty_tape(), model.tensor(TensorName::RmsFfn, layer), eps)?;
        let h1 = project(model, xb.with_empty_tape(), TensorName::W1, layer)?;
        let h3 = project(model, xb, TensorName::W3, layer)?;
        let hb = h1.with_empty_tape().try_sigmoid()?.try_mul(h1)?.try_mul(h3)?;
        let xb = project(model, hb, TensorName::W2, layer)?;
        x = x.try_add(dropout(xb, options, Place::FfnOut, layer)?)?;
    }
    let classifier = table::<T>(model, model.table())?.try_permute::<_, Axes2<1, 0>>()?;
    rmsnorm(x, model.tensor(TensorName::RmsFinal, 0), eps)?.try_matmul(classifier)
}

/// Computes attention of normalised activations xb (n, dim), before wo.
fn attention<T: Tape<f32, Cpu>>(
    model: &Llama<Cpu>,
    layer: usize,
    xb: Matrix<Cpu, T>,
    hidden: &Hidden,
    options: &Options,
) -> Result<Matrix<Cpu, T>, CpuError> {
    let (config, &(sequences, length, _)) = (&model.config, hidden.shape());
    let (heads, kv_heads, head_size) = (config.n_heads, config.n_kv_heads, config.head_size());
    let rope = Rope::new(&model.device, config, length)?;
    let heads_of = |xb, name, heads| -> Result<Heads<T>, CpuError> {
        let y = project(model, xb, name, layer)?;
        y.try_reshape_like(&(sequences, length, heads, head_size))?.try_permute::<_, Axes4<0, 2, 1, 3>>()
    };
    // Each key/value head serves kv_mul query heads.
    let repeat = |y: Heads<T>| {
        y.try_broadcast_like::<_, Axis<2>>(&(sequences, kv_heads, config.kv_mul(), length, head_size))?
            .try_reshape_like(&(sequences, heads, length, head_size))
    };
    let k = repeat(rope.rotate(heads_of(xb.with_empty_tape(), TensorName::Wk, kv_heads)?)?)?;
    let v = repeat(heads_of(xb.with_empty_tape(), TensorName::Wv, kv_heads)?)?;
    let q = rope.rotate(heads_of(xb, TensorName::Wq, heads)?)?;

    let scores = q.try_matmul(k.try_permute::<_, Axes4<0, 1, 3, 2>>()?)?.try_div((head_size as f32).sqrt())?;
    let shape = *scores.shape();
    let hidden = hidden.clone().try_broadcast_like::<_, Axis<1>>(&shape)?;
    let att = scores.try_add(hidden)?.try_softmax::<Axis<3>>()?;
    let att = dropout(att.try_reshape_like(&(sequences * heads * length, length))?, options, Place::Attention, layer)?;
    let out = att.try_reshape_like(&shape)?.try_matmul(v)?;
    out.try_permute::<_, Axes4<0, 2, 1, 3>>()?.try_reshape_like(&(sequences * length, config.dim))
}

/// What is added to the scores: -1e9 for keys after the query, or before the
/// start of its text.
fn hidden(device: &Cpu, batch: &Batch) -> Result<Hidden, CpuError> {
    let shape @ (sequences, length, _) = (batch.sequences, batch.length, batch.length);
    let Some(starts) = batch.starts else {
        return device.try_upper_tri_like(&(length, length), -1e9, 1)?.try_broadcast_like::<_, Axis<0>>(&shape);
    };
    let row = |i: usize| {
        let seen = starts[i] as usize..=i % length;
        (0..length).map(move |key| if seen.contains(&key) { 0.0 } else { -1e9 })
    };
    device.try_tensor_from_vec((0..sequences * length).flat_map(row).collect(), shape)
}

/// The rotary position embedding of interleaved pairs: x cos + swap(x) sin, where swap turns each
/// pair (x0, x1) into (-x1, x0).
struct Rope {
    cos: Matrix<Cpu>,  // (length, head_size), each value twice
    sin: Matrix<Cpu>,  // (length, head_size)
    swap: Matrix<Cpu>, // (head_size, head_size), a signed permutation
}

impl Rope {
    fn new(device: &Cpu, config: &Config, length: usize) -> Result<Self, CpuError> {
        let head_size = config.head_size();
        let (cos, sin) = rope_tables(config, length);
        let twice = |table: Vec<f32>| {
            device.try_tensor_from_vec(table.into_iter().flat_map(|x| [x, x]).collect(), (length, head_size))
        };
        let mut swap = vec![0.0; head_size * head_size];
        for i in (0..head_size).step_by(2) {
            swap[(i + 1) * head_size + i] = -1.0;
            swap[i * head_size + i + 1] = 1.0;
        }
        let swap = device.try_tensor_from_vec(swap, (head_size, head_size))?;
        Ok(Rope { cos: twice(cos)?, sin: twice(sin)?, swap })
    }

    fn rotate<T: Tape<f32, Cpu>>(&self, x: Heads<T>) -> Result<Heads<T>, CpuError> {
        let shape @ (sequences, heads, length, head_size) = *x.shape();
        let x = x.try_contiguous()?;
        let swapped = x
            .with_empty_tape()
            .try_reshape_like(&(sequences * heads * length, head_size))?
            .try_matmul(self.swap.clone())?
            .try_reshape_like(&shape)?;
        let cos = self.cos.clone().try_broadcast_like::<_, Axes2<0, 1>>(&shape)?;
        let sin = self.sin.clone().try_broadcast_like::<_, Axes2<0, 1>>(&shape)?;
        x.try_mul(cos)?.try_add(swapped.try_mul(sin)?)
    }
}

/// The embedding or the classifier (vocab_size, dim), with what is added to its rows.
fn table<T: Tape<f32, Cpu>>(model: &Llama<Cpu>, name: TensorName) -> Result<Matrix<Cpu, T>, CpuError> {
    let weight = model.tensor(name, 0).retaped::<T>();
    let (Some(adapters), Some(rows), true) = (&model.adapters, model.rows(), name == model.table()) else {
        return Ok(weight);
    };
    let shape = (model.config.vocab_size, rows.shape().0);
    let mut place = vec![0.0; shape.0 * shape.1];
    adapters.lora.ends().enumerate().for_each(|(i, token)| place[token as usize * shape.1 + i] = 1.0);
    let place: Matrix<Cpu> = model.device.try_tensor_from_vec(place, shape)?;
    weight.try_add(place.retaped::<T>().try_matmul(rows.retaped::<T>())?)
}

/// x (n, cols) times the transpose of a layer's matrix, and of its adapter.
fn project<T: Tape<f32, Cpu>>(
    model: &Llama<Cpu>,
    x: Matrix<Cpu, T>,
    name: TensorName,
    layer: usize,
) -> Result<Matrix<Cpu, T>, CpuError> {
    let weight = model.tensor(name, layer);
    let Some(Adapter { a, b, scale }) = model.adapter(name, layer) else { return linear(x, weight) };
    let adapted = linear(linear(x.with_empty_tape(), a)?, b)?.try_mul(scale)?;
    linear(x, weight)?.try_add(adapted)
}

/// x (n, cols) times the transpose of weight (rows, cols).
fn linear<T: Tape<f32, Cpu>>(x: Matrix<Cpu, T>, weight: &Matrix<Cpu>) -> Result<Matrix<Cpu, T>, CpuError> {
    x.try_matmul(weight.retaped::<T>().try_permute::<_, Axes2<1, 0>>()?)
}

/// x / √(mean(x²) + eps) · weight, row by row.
fn rmsnorm<T: Tape<f32, Cpu>>(x: Matrix<Cpu, T>, weight: &Matrix<Cpu>, eps: f32) -> Result<Matrix<Cpu, T>, CpuError> {
    let shape = *x.shape();
    let mean: Tensor<(usize,), f32, Cpu, T> = x.with_empty_tape().try_square()?.try_mean::<_, Axis<1>>()?;
    let root = mean.try_add(eps)?.try_sqrt()?.try_broadcast_like::<_, Axis<1>>(&shape)?;
    let weight = weight.retaped::<T>().try_reshape_like(&(shape.1,))?.try_broadcast_like::<_, Axis<0>>(&shape)?;
    x.try_div(root)?.try_mul(weight)
}

fn dropout<T: Tape<f32, Cpu>>(
    x: Matrix<Cpu, T>,
    options: &Options,
    place: Place,
    layer: usize,
) -> Result<Matrix<Cpu, T>, CpuError> {
    let Some(dropout) = Dropout::new(options.dropout, options.seed, place, layer) else { return Ok(x) };
    let shape @ (rows, cols) = *x.shape();
    let mask: Matrix<Cpu> = x.device().clone().try_tensor_from_vec(dropout.mask(rows, cols), shape)?;
    x.try_mul(mask)
}
