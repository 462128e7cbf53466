//! Last norm, classifier and loss, in groups of positions: the logits of all positions are never in
//! memory at once.

use itertools::izip;
use rayon::prelude::*;

use super::chunks::sum_parts;
use super::gradients::Gradients;
use super::mat::{Mat, MatMut};
use super::math::{LANES, exp2, rmsnorm, rmsnorm_backward, total, vectorized};
use super::sizes::Sizes;
use super::workspace::Workspace;
use crate::model::batch::{Batch, IGNORED, Options, Teacher};

/// Most logits in memory.
const MOST_LOGITS: usize = 1 << 24;
/// Positions of a task.
const BLOCK: usize = 128;

/// Mean loss. Leaves the gradient of the last norm's input in the workspace, if gradients are
/// wanted.
pub(super) fn loss(
    workspace: &mut Workspace,
    sizes: &Sizes,
    batch: &Batch,
    options: &Options,
    mut gradients: Option<&mut Gradients>,
) -> f32 {
    normalise(workspace, sizes);
    let (dim, vocab_size, products) = (sizes.config.dim, sizes.config.vocab_size, sizes.products);
    let Workspace { weights, operands, scratch, logits, .. } = workspace;
    let losses = Losses::new(batch, options, vocab_size);
    let positions = sizes.positions();
    let at_once = positions.min((MOST_LOGITS / vocab_size / BLOCK).max(1) * BLOCK);
    logits.resize(at_once * vocab_size);
    let wcls_t = operands.wcls_t.right(products);
    let wcls = products.right(Mat::new(weights.classifier(), dim), &operands.wcls);
    let mut sum = 0.0;
    for start in (0..positions).step_by(at_once) {
        let rows = at_once.min(positions - start);
        let xb = &scratch.xb[start * dim..][..rows * dim];
        let d_xb = &mut scratch.dy_att[start * dim..][..rows * dim];
        let logits = &mut logits[..rows * vocab_size];
        let blocks =
            (logits.par_chunks_mut(BLOCK * vocab_size), xb.par_chunks(BLOCK * dim), d_xb.par_chunks_mut(BLOCK * dim));
        let wanted = gradients.is_some();
        let sums = blocks.into_par_iter().enumerate().map(|(i, (logits, xb, d_xb))| {
            products.multiply(MatMut::new(logits, vocab_size), Mat::new(xb, dim), wcls_t, false);
            let sum = losses.block(start + i * BLOCK, logits);
            if wanted {
                products.multiply(MatMut::new(d_xb, dim), Mat::new(logits, vocab_size), wcls, false);
            }
            sum
        });
        sum += sums.collect::<Vec<f64>>().iter().sum::<f64>();
        let (d_logits, xb) = (Mat::new(logits, vocab_size), Mat::new(xb, dim));
        match gradients.as_deref_mut() {
            None => {}
            Some(Gradients::Weights(d)) => classifier_backward(sizes, d.classifier_mut(), d_logits, xb, start > 0),
            Some(Gradients::Adapters(d)) => {
                for (token, d_row) in d.lora.ends().zip(d.rows.chunks_exact_mut(dim)) {
                    let column = d_logits.cols(token as usize..token as usize + 1);
                    products.multiply(MatMut::new(d_row, dim), column.t(), xb, start > 0);
                }
            }
        }
    }
    if let Some(gradients) = gradients {
        norm_backward(workspace, sizes, gradients);
    }
    (sum / losses.counted as f64) as f32
}

/// d_wcls = the transpose of d_logits · xb, added to it if `add`.
fn classifier_backward(sizes: &Sizes, d_wcls: &mut [f32], d_logits: Mat, xb: Mat, add: bool) {
    let (dim, vocab_size) = (sizes.config.dim, sizes.config.vocab_size);
    // Few tiles, because each packs xb again, but enough to keep all threads busy.
    let tile = (vocab_size / 16).clamp(BLOCK, 4 * BLOCK);
    d_wcls.par_chunks_mut(tile * dim).enumerate().for_each(|(i, d_wcls)| {
        let tokens = i * tile..vocab_size.min((i + 1) * tile);
        sizes.products.multiply(MatMut::new(d_wcls, dim), d_logits.cols(tokens).t(), xb, add);
    });
}

/// From the gradient of the last norm's output to that of its input, and of its weight.
fn norm_backward(workspace: &mut Workspace, sizes: &Sizes, gradients: &mut Gradients) {
    let Workspace { weights, scratch, xs, last, .. } = workspace;
    let dim = sizes.config.dim;
    let rows = (
        scratch.dx.par_chunks_mut(BLOCK * dim),
        scratch.dy_att.par_chunks(BLOCK * dim),
        xs[*last].par_chunks(BLOCK * dim),
    );
    let d_rms = rows.into_par_iter().map(|(dx, dy, x)| {
        dx.fill(0.0);
        let mut d_rms = vec![0.0; dim];
        rmsnorm_backward(dx, &mut d_rms, dy, (x, &weights.rms_final, sizes.config.norm_eps));
        d_rms
    });
    let d_rms = d_rms.collect::<Vec<_>>();
    if let Some(gradients) = gradients.weights() {
        sum_parts(&mut gradients.rms_final, &d_rms, Vec::as_slice);
    }
}

/// All logits.
pub(super) fn logits(workspace: &mut Workspace, sizes: &Sizes) -> Vec<f32> {
    normalise(workspace, sizes);
    let (dim, vocab_size, products) = (sizes.config.dim, sizes.config.vocab_size, sizes.products);
    let mut logits = vec![0.0; sizes.positions() * vocab_size];
    let wcls_t = workspace.operands.wcls_t.right(products);
    let blocks = logits.par_chunks_mut(BLOCK * vocab_size).zip(workspace.scratch.xb.par_chunks(BLOCK * dim));
    blocks.for_each(|(logits, xb)| {
        products.multiply(MatMut::new(logits, vocab_size), Mat::new(xb, dim), wcls_t, false);
    });
    logits
}

/// Input of the classifier: the last norm's output.
fn normalise(Workspace { weights, scratch, xs, last, .. }: &mut Workspace, sizes: &Sizes) {
    let row = BLOCK * sizes.config.dim;
    let x = &xs[*last];
    scratch.xb.resize(x.len());
    let rows = scratch.xb.par_chunks_mut(row).zip(x.par_chunks(row));
    rows.for_each(|(xb, x)| rmsnorm(xb, x, &weights.rms_final, sizes.config.norm_eps));
}

/// What the losses of a batch depend on, beside the logits.
struct Losses<'a> {
    targets: &'a [u32],
    teacher: Option<Teacher<'a>>,
    vocab_size: usize,
    /// Positions that count.
    counted: usize,
}

impl<'a> Losses<'a> {
    fn new(batch: &Batch<'a>, options: &Options<'a>, vocab_size: usize) -> Self {
        let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
        Losses { targets: batch.targets, teacher: options.teacher, vocab_size, counted }
    }

    /// Sum of the losses of positions from `first` on; turns their logits into the gradient of the
    /// mean loss.
    fn block(&self, first: usize, logits: &mut [f32]) -> f64 {
        let mut teaching = self.teacher.map(|teacher| Teaching::new(teacher, self.vocab_size));
        vectorized(
            #[inline(always)]
            || {
                let mut sum = 0.0;
                let rows = logits.chunks_exact_mut(self.vocab_size).zip(&self.targets[first..]);
                for (i, (logits, target)) in rows.enumerate() {
                    if *target == IGNORED {
                        logits.fill(0.0);
                        continue;
                    }
                    let divergence = match &mut teaching {
                        Some(teaching) => teaching.divergence(logits, first + i),
                        None => 0.0,
                    };
                    sum += self.text(logits, *target as usize);
                    if let Some(teaching) = &teaching {
                        sum += teaching.loss(logits, divergence, self.counted);
                    }
                }
                sum
            },
        )
    }

    /// The text's share of a position's loss, and of its gradient.
    #[inline(always)]
    fn text(&self, logits: &mut [f32], target: usize) -> f64 {
        let share = self.teacher.map_or(1.0, |t| 1.0 - t.weight);
        let logit = logits[target];
        let scale = share / self.counted as f32;
        let (sum_exp, max) = exp_row(logits, 1.0);
        logits.iter_mut().for_each(|x| *x *= scale / sum_exp);
        logits[target] -= scale;
        f64::from(share) * (f64::from(sum_exp.ln()) + f64::from(max - logit))
    }
}

/// A teacher, and the distributions of one position at its temperature.
struct Teaching<'a> {
    teacher: Teacher<'a>,
    student: Vec<f32>,
    taught: Vec<f32>,
}

impl<'a> Teaching<'a> {
    fn new(teacher: Teacher<'a>, vocab_size: usize) -> Self {
        Teaching { teacher, student: vec![0.0; vocab_size], taught: vec![0.0; vocab_size] }
    }

    /// KL(teacher ‖ student) at a position.
    #[inline(always)]
    fn divergence(&mut self, logits: &[f32], position: usize) -> f32 {
        let temperature = self.teacher.temperature;
        let teacher = &self.teacher.logits[position * logits.len()..][..logits.len()];
        let student_sum = softmax(&mut self.student, logits, temperature);
        let taught_sum = softmax(&mut self.taught, teacher, temperature);
        // Σ taught (teacher - student) / temperature, then the difference of the normalisations.
        let mut lanes = [0.0; LANES];
        for (p, a, b) in izip!(self.taught.chunks(LANES), teacher.chunks(LANES), logits.chunks(LANES)) {
            for (lane, p, a, b) in izip!(&mut lanes, p, a, b) {
                *lane += p * (a - b);
            }
        }
        total(lanes) / temperature - taught_sum + student_sum
    }

    /// The teacher's share of a position's loss; adds its gradient to that of the logits.
    #[inline(always)]
    fn loss(&self, gradient: &mut [f32], divergence: f32, counted: usize) -> f64 {
        let Teacher { weight, temperature: t, .. } = self.teacher;
        let scale = weight * t / counted as f32;
        for (x, student, taught) in izip!(gradient, &self.student, &self.taught) {
            *x += scale * (student - taught);
        }
        f64::from(weight * t * t * divergence)
    }
}

/// Probabilities of logits at a temperature. Returns the log of the sum of exponentials.
#[inline(always)]
fn softmax(probs: &mut [f32], logits: &[f32], temperature: f32) -> f32 {
    probs.copy_from_slice(logits);
    let (sum, max) = exp_row(probs, temperature);
    probs.iter_mut().for_each(|p| *p /= sum);
    sum.ln() + max / temperature
}

/// x = exp((x - max) / temperature). Returns their sum and the maximum.
#[inline(always)]
fn exp_row(x: &mut [f32], temperature: f32) -> (f32, f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let scale = std::f32::consts::LOG2_E / temperature;
    let mut lanes = [0.0; LANES];
    for x in x.chunks_mut(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *x = exp2((*x - max) * scale);
            *lane += *x;
        }
    }
    (total(lanes), max)
}
