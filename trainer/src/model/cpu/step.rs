//! A step.

use std::f32::consts::{LN_2, LOG2_E};

use dfdx::prelude::{AdamConfig, Cpu, PutTape, Rank0, Tape, Tensor, TensorFromVec};
use infer_core::Config;
use infer_core::format::TensorName;
use rayon::prelude::*;

use super::amx::Panels;
use super::buffer::Buffer;
use super::classifier;
use super::layer::{self, Activations, Gradient, Layer};
use super::math::{self, LANES};
use super::products::{Transposed, View};
use crate::model::batch::{Batch, Options};
use crate::model::device::device_error;
use crate::model::dropout::{Dropout, Place};
use crate::model::llama::Llama;
use crate::model::precision::MatmulPrecision;
use crate::model::rope::rope_tables;

/// Numbers that a task works on where there is one pass over memory only.
const CHUNK: usize = 1 << 14;

/// Scratch memory that is kept from step to step.
#[derive(Default)]
pub struct Workspace {
    shape: (usize, usize), // sequences and length that the memory is for
    pub(super) weights: Weights,
    pub(super) operands: Operands,
    gradients: Weights, // until they are added to those on the tape
    activations: Vec<Activations>,
    pub(super) gradient: Gradient,
    pub(super) xs: Vec<Buffer>, // input of each layer and of the last norm, (positions, dim)
    pub(super) last: usize,     // the one of the last norm
    pub(super) logits: Buffer,  // of some positions at a time
    rope: Rope,
}

/// The weights, or their gradients, as plain slices.
#[derive(Default)]
pub(super) struct Weights {
    tok_emb: Buffer, // (vocab_size, dim)
    layers: Vec<Layer>,
    pub rms_final: Buffer, // (dim)
    pub wcls: Buffer,      // (vocab_size, dim), empty if shared
}

/// The weights as right-hand sides of products.
#[derive(Default)]
pub(super) struct Operands {
    layers: Vec<layer::Operands>,
    pub wcls_t: Transposed,
    pub wcls: Panels, // for AMX
}

/// Sizes of one run.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub config: Config,
    pub sequences: usize,
    pub length: usize,
    /// Positions of a row of transposed activations.
    pub padded: usize,
    /// Positions that products work on at a time; divides `length`.
    pub block: usize,
    /// Positions of a task that sums the weights' gradients: a multiple of `block`.
    pub part: usize,
    /// Products are taken by AMX.
    pub amx: bool,
}

impl Sizes {
    fn new(config: Config, sequences: usize, length: usize, precision: MatmulPrecision) -> Sizes {
        // An odd multiple, so that neighbouring rows do not compete for the same sets of the cache.
        let padded = (length.div_ceil(LANES) | 1) * LANES;
        const LARGEST: usize = 128;
        const SMALLEST: usize = 32;
        let block = (SMALLEST..=LARGEST).rev().find(|block| length.is_multiple_of(*block)).unwrap_or(length);
        // As many threads have work; each part needs memory of the size of a layer's weights.
        const PARTS: usize = 16;
        let part = (sequences * length / block).div_ceil(PARTS) * block;
        Sizes { config, sequences, length, padded, block, part, amx: precision.uses_amx() }
    }

    pub fn positions(&self) -> usize {
        self.sequences * self.length
    }

    /// Rows of queries, keys and values that belong to one key/value head.
    pub fn group(&self) -> usize {
        (self.config.kv_mul() + 2) * self.config.head_size()
    }

    /// Rows of queries of one key/value head.
    pub fn queries(&self) -> usize {
        self.config.kv_mul() * self.config.head_size()
    }

    pub fn qkv(&self) -> usize {
        self.group() * self.config.n_kv_heads
    }
}

/// cos and sin of the rotary angles, `(head_size / 2, padded)`.
#[derive(Default)]
pub(super) struct Rope {
    cos: Buffer,
    sin: Buffer,
}

/// Loss of a checked batch, its gradients if there is a tape.
///
/// # Errors
/// Out of memory.
pub fn loss<T: Tape<f32, Cpu>>(
    model: &Llama<Cpu>,
    batch: &Batch,
    options: &Options,
    mut tape: T,
) -> anyhow::Result<Tensor<Rank0, f32, Cpu, T>> {
    let sizes = Sizes::new(model.config, batch.sequences, batch.length, model.matmul_precision);
    let mut workspace = model.workspace.lock().expect("no thread panics in a step");
    let workspace = &mut *workspace;
    workspace.load(model, &sizes, T::OWNS_TAPE);
    let mut gradients = T::OWNS_TAPE.then(|| std::mem::take(&mut workspace.gradients));
    // Inside the pool, so that a loop over tasks wakes no thread from outside.
    let loss = rayon::scope(|_| {
        forward(workspace, &sizes, batch.tokens, options, gradients.is_some());
        if let Some(gradients) = &mut gradients {
            gradients.clear(&model.config);
        }
        let loss = classifier::loss(workspace, &sizes, batch, options, gradients.as_mut());
        if let Some(gradients) = &mut gradients {
            backward(workspace, &sizes, batch.tokens, options, gradients);
        }
        loss
    });
    let loss = model.device.try_tensor_from_vec(vec![loss], ()).map_err(device_error::<Cpu>)?;
    if let Some(mut gradients) = gradients {
        let (ghosts, loss_ghost): (Vec<_>, _) =
            (model.parameters.iter().map(|p| p.tensor.ghost()).collect(), loss.ghost());
        let names: Vec<_> = model.parameters.iter().map(|p| (p.shape.name, p.shape.layer)).collect();
        let (config, workspace) = (model.config, model.workspace.clone());
        tape.add_backward_op(move |all| {
            let upstream = all.get_or_alloc_mut(&loss_ghost)?[0];
            for (ghost, (name, layer)) in ghosts.iter().zip(names) {
                let target = all.get_or_alloc_mut(ghost)?;
                gradients.for_each_row(&config, name, layer, target.len(), |at, row| {
                    let chunks = target[at..at + row.len()].par_chunks_mut(CHUNK).zip(row.par_chunks(CHUNK));
                    chunks.for_each(|(target, gradient)| {
                        target.iter_mut().zip(gradient).for_each(|(target, gradient)| *target += upstream * gradient);
                    });
                });
            }
            workspace.lock().expect("no thread panics in a step").gradients = gradients;
            Ok(())
        });
    }
    Ok(loss.put_tape(tape))
}

/// Logits of checked tokens.
///
/// # Errors
/// None so far.
pub fn logits(model: &Llama<Cpu>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
    let sizes = Sizes::new(model.config, sequences, length, MatmulPrecision::Highest);
    let mut workspace = model.workspace.lock().expect("no thread panics in a step");
    workspace.load(model, &sizes, false);
    forward(&mut workspace, &sizes, tokens, &Options::default(), false);
    Ok(classifier::logits(&mut workspace, &sizes))
}

/// Sum of squares, in an order that does not depend on the number of threads.
pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    let sums: Vec<f64> = x.par_chunks(CHUNK).map(|x| f64::from(math::vectorized(|| math::sum_of_squares(x)))).collect();
    sums.iter().sum()
}

/// Sums a part of each task in order.
pub(super) fn sum_parts<T: Sync>(sum: &mut [f32], tasks: &[T], part: impl Fn(&T) -> &[f32] + Sync) {
    sum.par_chunks_mut(CHUNK).enumerate().for_each(|(i, sum)| {
        sum.fill(0.0);
        for task in tasks {
            sum.iter_mut().zip(&part(task)[i * CHUNK..]).for_each(|(sum, x)| *sum += x);
        }
    });
}

/// x *= factor
pub(super) fn scale(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

/// AdamW's update of a parameter's values.
pub(super) fn adam(adam: &AdamConfig, step: u32, values: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
    let chunks = values.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    let chunks = chunks.zip(gradient.par_chunks(CHUNK));
    chunks.for_each(|(((values, m), v), gradient)| math::adam(adam, step, values, m, v, gradient));
}

/// From tokens to the input of the last norm.
fn forward(workspace: &mut Workspace, sizes: &Sizes, tokens: &[u32], options: &Options, keep: bool) {
    let Workspace { weights, operands, activations, xs, last, rope, gradient, .. } = workspace;
    let (config, positions) = (&sizes.config, sizes.positions());
    // Without backward two layers' inputs and one layer's activations are enough.
    let kept = |l: usize, few: usize| if keep { l } else { l % few };
    let layers = config.n_layers;
    activations.resize_with(activations.len().max(if keep { layers } else { 1 }), Default::default);
    xs.resize_with(xs.len().max(if keep { layers + 1 } else { 2 }), Default::default);
    gradient.resize(sizes);
    for x in xs.iter_mut() {
        x.resize(positions * config.dim);
    }

    let dropout = Dropout::new(options.dropout, options.seed, Place::Embedding, 0);
    let rows = xs[0].par_chunks_mut(config.dim).zip(tokens).enumerate();
    rows.for_each(|(position, (x, token))| {
        x.copy_from_slice(&weights.tok_emb[*token as usize * config.dim..][..config.dim]);
        drop_rows(dropout, x, config.dim, position);
    });
    for l in 0..layers {
        let (now, next) = (kept(l, 2), kept(l + 1, 2));
        let [x, x_next] = xs.get_disjoint_mut([now, next]).expect("two different inputs");
        let activations = &mut activations[kept(l, 1)];
        activations.resize(sizes);
        let weights = (&weights.layers[l], &operands.layers[l]);
        layer::forward(sizes, l, weights, rope, x, activations, x_next, gradient, options);
    }
    *last = kept(layers, 2);
}

/// From the gradient of the last norm's input, in the workspace, to that of all weights.
fn backward(workspace: &mut Workspace, sizes: &Sizes, tokens: &[u32], options: &Options, gradients: &mut Weights) {
    let Workspace { weights, operands, activations, xs, rope, gradient, .. } = workspace;
    for l in (0..sizes.config.n_layers).rev() {
        let (weights, d_weights) = ((&weights.layers[l], &operands.layers[l]), &mut gradients.layers[l]);
        layer::backward(sizes, l, weights, rope, &xs[l], &mut activations[l], gradient, d_weights, options);
    }
    let dim = sizes.config.dim;
    let dropout = Dropout::new(options.dropout, options.seed, Place::Embedding, 0);
    for (position, (dx, token)) in gradient.dx.chunks_exact_mut(dim).zip(tokens).enumerate() {
        drop_rows(dropout, dx, dim, position);
        for (sum, dx) in gradients.tok_emb[*token as usize * dim..].iter_mut().zip(dx) {
            *sum += *dx;
        }
    }
}

/// Applies dropout to rows of activations, the first of which is that of this position.
pub(super) fn drop_rows(dropout: Option<Dropout>, x: &mut [f32], cols: usize, position: usize) {
    let Some(dropout) = dropout else { return };
    for (i, row) in x.chunks_exact_mut(cols).enumerate() {
        let key = dropout.row(position + i);
        row.iter_mut().enumerate().for_each(|(col, x)| *x *= dropout.factor(key, col));
    }
}

impl Workspace {
    /// Takes the weights, and clean memory if the shape changes: what is padding must be zero.
    fn load(&mut self, model: &Llama<Cpu>, sizes: &Sizes, backward: bool) {
        let shape = (sizes.sequences, sizes.length);
        if self.shape != shape {
            let Workspace { weights, operands, gradients, .. } = std::mem::take(self);
            *self = Workspace { shape, weights, operands, gradients, rope: Rope::new(sizes), ..Workspace::default() };
        }
        rayon::scope(|_| {
            self.weights.load(model);
            self.operands.load(&self.weights, sizes, backward);
        });
    }
}

impl Rope {
    fn new(sizes: &Sizes) -> Rope {
        let pairs = sizes.config.head_size() / 2;
        let (cos, sin) = rope_tables(sizes.length, 2 * pairs);
        let transpose = |table: Vec<f32>| {
            let mut transposed = Buffer::zeros(pairs * sizes.padded);
            for (i, x) in table.into_iter().enumerate() {
                transposed[i % pairs * sizes.padded + i / pairs] = x;
            }
            transposed
        };
        Rope { cos: transpose(cos), sin: transpose(sin) }
    }

    /// Rotates the queries and the key of a key/value head's rows of qkv, and scales the queries
    /// for [`attention::Forward`].
    pub fn forward(&self, sizes: &Sizes, qkv: &mut [f32]) {
        let scale = LOG2_E / (sizes.config.head_size() as f32).sqrt();
        let (q, kv) = qkv.split_at_mut(sizes.queries() * sizes.padded);
        self.rotate(sizes, q, scale, 1.0);
        self.rotate(sizes, &mut kv[..sizes.config.head_size() * sizes.padded], 1.0, 1.0);
    }

    /// The same for their gradients, which [`attention::Backward`] leaves without the factor ln(2).
    pub fn backward(&self, sizes: &Sizes, dqkv: &mut [f32]) {
        let scale = 1.0 / (sizes.config.head_size() as f32).sqrt();
        let (dq, dkv) = dqkv.split_at_mut(sizes.queries() * sizes.padded);
        self.rotate(sizes, dq, scale, -1.0);
        self.rotate(sizes, &mut dkv[..sizes.config.head_size() * sizes.padded], LN_2, -1.0);
    }

    /// Rotates pairs of rows by `sign` times the angles.
    fn rotate(&self, sizes: &Sizes, rows: &mut [f32], scale: f32, sign: f32) {
        let padded = sizes.padded;
        for head in rows.chunks_exact_mut(sizes.config.head_size() * padded) {
            let angles = self.cos.chunks_exact(padded).zip(self.sin.chunks_exact(padded));
            for (pair, (cos, sin)) in head.chunks_exact_mut(2 * padded).zip(angles) {
                let (x0, x1) = pair.split_at_mut(padded);
                for (((x0, x1), cos), sin) in x0.iter_mut().zip(x1).zip(cos).zip(sin) {
                    let (cos, sin) = (scale * cos, sign * scale * sin);
                    (*x0, *x1) = (*x0 * cos - *x1 * sin, *x0 * sin + *x1 * cos);
                }
            }
        }
    }
}

impl Operands {
    fn load(&mut self, weights: &Weights, sizes: &Sizes, backward: bool) {
        let Config { n_layers, dim, vocab_size, .. } = sizes.config;
        self.layers.resize_with(n_layers, Default::default);
        self.layers.iter_mut().zip(&weights.layers).for_each(|(layer, weights)| layer.load(weights, sizes, backward));
        let wcls = View::new(weights.classifier(), dim);
        self.wcls_t.load(sizes, wcls, (dim, vocab_size));
        if sizes.amx && backward {
            self.wcls.load(wcls, (vocab_size, dim));
        }
    }
}

impl Weights {
    fn zeros(config: &Config) -> Weights {
        let table = config.vocab_size * config.dim;
        Weights {
            tok_emb: Buffer::zeros(table),
            layers: (0..config.n_layers).map(|_| Layer::zeros(config)).collect(),
            rms_final: Buffer::zeros(config.dim),
            wcls: Buffer::zeros(if config.shared_classifier { 0 } else { table }),
        }
    }

    /// Zeros where backward adds; it writes the rest.
    fn clear(&mut self, config: &Config) {
        if self.layers.is_empty() {
            *self = Weights::zeros(config);
        }
        if !config.shared_classifier {
            self.tok_emb.fill(0.0);
        }
    }

    fn load(&mut self, model: &Llama<Cpu>) {
        if self.layers.is_empty() {
            *self = Weights::zeros(&model.config);
        }
        let Weights { tok_emb, layers, rms_final, wcls } = self;
        rayon::scope(|s| {
            s.spawn(|_| model.tensor(TensorName::TokEmb, 0).copy_into(tok_emb));
            model.tensor(TensorName::RmsFinal, 0).copy_into(rms_final);
            if !wcls.is_empty() {
                model.tensor(TensorName::Wcls, 0).copy_into(wcls);
            }
            layers.par_iter_mut().enumerate().for_each(|(l, layer)| {
                let mut values = Vec::new();
                for parameter in model.parameters.iter().filter(|p| p.shape.layer == l) {
                    // copy_into, the only way to read a tensor, reads it whole.
                    let n = parameter.shape.size();
                    layer.for_each_part(&model.config, parameter.shape.name, n, |at, part| {
                        if part.len() == n {
                            return parameter.tensor.copy_into(part);
                        }
                        if at == 0 {
                            values.resize(n, 0.0);
                            parameter.tensor.copy_into(&mut values);
                        }
                        part.copy_from_slice(&values[at..at + part.len()]);
                    });
                }
            });
        });
    }

    /// Where the values of a parameter lie: `visit(start in the parameter, values)` for each
    /// contiguous part.
    fn for_each_row(
        &mut self,
        config: &Config,
        name: TensorName,
        layer: usize,
        len: usize,
        mut visit: impl FnMut(usize, &mut [f32]),
    ) {
        use TensorName::*;
        match name {
            TokEmb => visit(0, &mut self.tok_emb),
            RmsFinal => visit(0, &mut self.rms_final),
            Wcls => visit(0, &mut self.wcls),
            FreqCisReal | FreqCisImag => {}
            _ => self.layers[layer].for_each_part(config, name, len, visit),
        }
    }

    pub fn classifier(&self) -> &[f32] {
        if self.wcls.is_empty() { &self.tok_emb } else { &self.wcls }
    }

    pub fn classifier_mut(&mut self) -> &mut [f32] {
        if self.wcls.is_empty() { &mut self.tok_emb } else { &mut self.wcls }
    }
}
