//! Last norm, classifier and loss, some positions at a time, so that never all logits are in
//! memory.

use rayon::prelude::*;

use super::math::{LANES, exp2, rmsnorm, rmsnorm_backward, total, vectorized};
use super::products::View;
use super::step::{Sizes, Weights, Workspace, sum_parts};
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
    mut gradients: Option<&mut Weights>,
) -> f32 {
    let (dim, vocab_size) = (sizes.config.dim, sizes.config.vocab_size);
    normalise(workspace, sizes);
    let Workspace { weights, operands, gradient, logits, xs, last, .. } = workspace;
    let positions = sizes.positions();
    let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
    let at_once = positions.min((MOST_LOGITS / vocab_size / BLOCK).max(1) * BLOCK);
    logits.resize(at_once * vocab_size);
    let wcls = (View::new(weights.classifier(), dim), &operands.wcls);
    let mut sum = 0.0;
    for start in (0..positions).step_by(at_once) {
        let rows = at_once.min(positions - start);
        let xb = &gradient.xb[start * dim..][..rows * dim];
        let logits = &mut logits[..rows * vocab_size];
        let blocks = logits
            .par_chunks_mut(BLOCK * vocab_size)
            .zip(xb.par_chunks(BLOCK * dim))
            .zip(gradient.dy_att[start * dim..][..rows * dim].par_chunks_mut(BLOCK * dim));
        let wanted = gradients.is_some();
        let losses = blocks.enumerate().map(|(i, ((logits, xb), d_xb))| {
            let rows = xb.len() / dim;
            let first = start + i * BLOCK;
            sizes.matmul((rows, vocab_size, dim), logits, vocab_size, View::new(xb, dim), &operands.wcls_t, false);
            let loss = losses(logits, vocab_size, first, batch.targets, options.teacher, counted);
            if wanted {
                sizes.matmul((rows, dim, vocab_size), d_xb, dim, View::new(logits, vocab_size), wcls, false);
            }
            loss
        });
        sum += losses.collect::<Vec<f64>>().iter().sum::<f64>();
        if let Some(gradients) = &mut gradients {
            let (d_logits, xb) = (View::new(logits, vocab_size), View::new(xb, dim));
            // Few, as each packs xb again, but enough to keep all threads busy.
            let tile = (vocab_size / 16).clamp(BLOCK, 4 * BLOCK);
            let tiles = gradients.classifier_mut().par_chunks_mut(tile * dim).enumerate();
            tiles.for_each(|(i, d_wcls)| {
                let d_logits = d_logits.skip_cols(i * tile);
                sizes.matmul((d_wcls.len() / dim, dim, rows), d_wcls, dim, d_logits.t(), xb, start > 0);
            });
        }
    }
    if let Some(gradients) = gradients {
        let rows = gradient.dx.par_chunks_mut(BLOCK * dim).zip(gradient.dy_att.par_chunks(BLOCK * dim));
        let d_rms = rows.zip(xs[*last].par_chunks(BLOCK * dim)).map(|((dx, dy), x)| {
            dx.fill(0.0);
            let mut d_rms = vec![0.0; dim];
            rmsnorm_backward(dx, &mut d_rms, dy, x, &weights.rms_final);
            d_rms
        });
        sum_parts(&mut gradients.rms_final, &d_rms.collect::<Vec<_>>(), Vec::as_slice);
    }
    (sum / counted as f64) as f32
}

/// All logits.
pub(super) fn logits(workspace: &mut Workspace, sizes: &Sizes) -> Vec<f32> {
    let (dim, vocab_size) = (sizes.config.dim, sizes.config.vocab_size);
    normalise(workspace, sizes);
    let mut logits = vec![0.0; sizes.positions() * vocab_size];
    let wcls_t = &workspace.operands.wcls_t;
    let blocks = logits.par_chunks_mut(BLOCK * vocab_size).zip(workspace.gradient.xb.par_chunks(BLOCK * dim));
    blocks.for_each(|(logits, xb)| {
        sizes.matmul((xb.len() / dim, vocab_size, dim), logits, vocab_size, View::new(xb, dim), wcls_t, false);
    });
    logits
}

/// Input of the classifier: the last norm's output.
fn normalise(workspace: &mut Workspace, sizes: &Sizes) {
    let dim = sizes.config.dim;
    let Workspace { weights, gradient, xs, last, .. } = workspace;
    let x = &xs[*last];
    gradient.xb.resize(x.len());
    let rows = gradient.xb.par_chunks_mut(BLOCK * dim).zip(x.par_chunks(BLOCK * dim));
    rows.for_each(|(xb, x)| rmsnorm(xb, x, &weights.rms_final));
}

/// Sum of the losses of these positions; turns their logits into the gradient of the mean over
/// `counted` positions.
fn losses(
    logits: &mut [f32],
    vocab_size: usize,
    first: usize,
    targets: &[u32],
    teacher: Option<Teacher>,
    counted: usize,
) -> f64 {
    let scratch = if teacher.is_some() { vocab_size } else { 0 };
    let (mut student, mut taught) = (vec![0.0; scratch], vec![0.0; scratch]);
    let text_share = teacher.map_or(1.0, |t| 1.0 - t.weight);
    vectorized(
        #[inline(always)]
        || {
            let mut sum = 0.0;
            for ((i, logits), target) in logits.chunks_exact_mut(vocab_size).enumerate().zip(&targets[first..]) {
                if *target == IGNORED {
                    logits.fill(0.0);
                    continue;
                }
                let divergence = teacher.map(
                    #[inline(always)]
                    |teacher| {
                        let row = &teacher.logits[(first + i) * vocab_size..][..vocab_size];
                        divergence(&mut student, &mut taught, logits, row, teacher.temperature)
                    },
                );
                let target = *target as usize;
                let logit = logits[target];
                let scale = text_share / counted as f32;
                let (sum_exp, max) = exp_row(logits, 1.0);
                sum += f64::from(text_share) * (f64::from(sum_exp.ln()) + f64::from(max - logit));
                logits.iter_mut().for_each(|x| *x *= scale / sum_exp);
                logits[target] -= scale;
                if let (Some(teacher), Some(divergence)) = (teacher, divergence) {
                    let t = teacher.temperature;
                    sum += f64::from(teacher.weight * t * t * divergence);
                    let scale = teacher.weight * t / counted as f32;
                    for ((x, student), taught) in logits.iter_mut().zip(&student).zip(&taught) {
                        *x += scale * (student - taught);
                    }
                }
            }
            sum
        },
    )
}

/// KL(teacher ‖ student) at a temperature; leaves both distributions in `student` and `taught`.
#[inline(always)]
fn divergence(student: &mut [f32], taught: &mut [f32], logits: &[f32], teacher: &[f32], temperature: f32) -> f32 {
    let mut log_sums = [0.0; 2];
    for ((probs, logits), log_sum) in [(&mut *student, logits), (&mut *taught, teacher)].into_iter().zip(&mut log_sums)
    {
        probs.copy_from_slice(logits);
        let (sum, max) = exp_row(probs, temperature);
        probs.iter_mut().for_each(|p| *p /= sum);
        *log_sum = sum.ln() + max / temperature;
    }
    // Σ taught (teacher - student) / temperature, then the difference of the normalisations.
    let mut lanes = [0.0; LANES];
    for ((p, a), b) in taught.chunks(LANES).zip(teacher.chunks(LANES)).zip(logits.chunks(LANES)) {
        for (((lane, p), a), b) in lanes.iter_mut().zip(p).zip(a).zip(b) {
            *lane += p * (a - b);
        }
    }
    total(lanes) / temperature - log_sums[1] + log_sums[0]
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
