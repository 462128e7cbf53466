//! A step, from tokens to loss and gradients.

use dfdx::prelude::{Cpu, PutTape, Rank0, Tape, Tensor, TensorFromVec};
use infer_core::Config;
use rayon::prelude::*;

use super::chunks::add_scaled;
use super::gradients::Gradients;
use super::layer::Layer;
use super::loss;
use super::products::Products;
use super::sizes::Sizes;
use super::workspace::Workspace;
use crate::model::batch::{Batch, Options};
use crate::model::device::device_error;
use crate::model::dropout::{Dropout, Place};
use crate::model::llama::Llama;

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
    let products = Products::new(model.matmul_precision, model.dtype);
    let sizes = Sizes::new(model.config, batch.sequences, batch.length, products);
    let mut workspace = model.workspace.lock().expect("no thread panics in a step");
    let workspace = &mut *workspace;
    workspace.load(model, &sizes, T::OWNS_TAPE);
    workspace.set_starts(&sizes, batch.starts);
    let mut gradients = T::OWNS_TAPE.then(|| std::mem::take(&mut workspace.gradients));
    // Inside the pool, so that a loop over tasks wakes no thread from outside.
    let loss = rayon::scope(|_| {
        forward(workspace, &sizes, batch.tokens, options, gradients.is_some());
        if let Some(gradients) = &mut gradients {
            gradients.clear(&model.config, model.adapters.as_ref().map(|adapters| adapters.lora));
        }
        let loss = loss::loss(workspace, &sizes, batch, options, gradients.as_mut());
        if let Some(gradients) = &mut gradients {
            backward(workspace, &sizes, batch.tokens, options, gradients);
        }
        loss
    });
    let loss = model.device.try_tensor_from_vec(vec![loss], ()).map_err(device_error::<Cpu>)?;
    if let Some(gradients) = gradients {
        add_in_backward(model, &mut tape, &loss, gradients);
    }
    Ok(loss.put_tape(tape))
}

/// Adds an operation to the tape. In backward it multiplies these gradients by that of the loss and
/// adds them to the parameters' gradients.
fn add_in_backward<T: Tape<f32, Cpu>>(
    model: &Llama<Cpu>,
    tape: &mut T,
    loss: &Tensor<Rank0, f32, Cpu>,
    mut gradients: Gradients,
) {
    // Of adapters, A and B in turn.
    let parameters: Vec<_> = model.trained().iter().map(|p| (p.shape, p.tensor.ghost())).collect();
    let (config, workspace, loss) = (model.config, model.workspace.clone(), loss.ghost());
    tape.add_backward_op(move |all| {
        let upstream = all.get_or_alloc_mut(&loss)?[0];
        for (i, (shape, ghost)) in parameters.iter().enumerate() {
            let target = all.get_or_alloc_mut(ghost)?;
            gradients.for_each_part(&config, (shape, i % 2 == 1), |at, factor, part| {
                add_scaled(&mut target[at..at + part.len()], upstream * factor, part);
            });
        }
        workspace.lock().expect("no thread panics in a step").gradients = gradients;
        Ok(())
    });
}

/// Logits of checked tokens.
///
/// # Errors
/// None so far.
pub fn logits(model: &Llama<Cpu>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
    let sizes = Sizes::new(model.config, sequences, length, Products::Gemm);
    let mut workspace = model.workspace.lock().expect("no thread panics in a step");
    workspace.load(model, &sizes, false);
    workspace.set_starts(&sizes, None);
    forward(&mut workspace, &sizes, tokens, &Options::default(), false);
    Ok(loss::logits(&mut workspace, &sizes))
}

/// From tokens to the input of the last norm. To `keep` what backward needs takes more memory.
fn forward(workspace: &mut Workspace, sizes: &Sizes, tokens: &[u32], options: &Options, keep: bool) {
    workspace.resize(sizes, keep);
    let Workspace { weights, operands, adapters, activations, xs, last, rope, starts, scratch, .. } = workspace;
    let starts = (!starts.is_empty()).then_some(&**starts);
    let Config { dim, n_layers, .. } = sizes.config;
    let dropout = Dropout::new(options.dropout, options.seed, Place::Embedding, 0);
    let rows = xs[0].par_chunks_mut(dim).zip(tokens).enumerate();
    rows.for_each(|(position, (x, token))| {
        x.copy_from_slice(&weights.tok_emb[*token as usize * dim..][..dim]);
        if let Some(dropout) = dropout {
            dropout.apply(x, dim, position);
        }
    });
    let kept = |l: usize, few: usize| if keep { l } else { l % few };
    for l in 0..n_layers {
        let [x, x_next] = xs.get_disjoint_mut([kept(l, 2), kept(l + 1, 2)]).expect("two different inputs");
        let activations = &mut activations[kept(l, 1)];
        activations.resize(sizes);
        let (weights, operands, adapters) = (&weights.layers[l], &operands.layers[l], &adapters[l]);
        let layer = Layer { sizes, index: l, weights, operands, adapters, rope, starts, options };
        layer.forward(x, activations, x_next, scratch);
    }
    *last = kept(n_layers, 2);
}

/// From the gradient of the last norm's input, in the workspace, to that of all weights.
fn backward(workspace: &mut Workspace, sizes: &Sizes, tokens: &[u32], options: &Options, gradients: &mut Gradients) {
    let Workspace { weights, operands, adapters, activations, xs, rope, starts, scratch, parts, .. } = workspace;
    let starts = (!starts.is_empty()).then_some(&**starts);
    for l in (0..sizes.config.n_layers).rev() {
        let (weights, operands, adapters) = (&weights.layers[l], &operands.layers[l], &adapters[l]);
        let layer = Layer { sizes, index: l, weights, operands, adapters, rope, starts, options };
        let (x, activations) = (&xs[l], &mut activations[l]);
        match gradients {
            Gradients::Weights(d) => layer.backward(x, activations, scratch, &mut parts.weights, &mut d.layers[l]),
            Gradients::Adapters(d) => {
                layer.backward(x, activations, scratch, &mut parts.adapters, &mut d.layers[l]);
            }
        }
    }
    embedding_backward(&mut scratch.dx, sizes, tokens, options, gradients);
}

/// From the gradient dx of the embedded tokens to that of the embedding, or of its rows that are
/// trained.
fn embedding_backward(dx: &mut [f32], sizes: &Sizes, tokens: &[u32], options: &Options, gradients: &mut Gradients) {
    let dim = sizes.config.dim;
    let (sums, ends): (&mut [f32], Option<Vec<u32>>) = match gradients {
        Gradients::Weights(weights) => (&mut weights.tok_emb, None),
        Gradients::Adapters(d) if sizes.config.shared_classifier => (&mut d.rows, Some(d.lora.ends().collect())),
        Gradients::Adapters(_) => return,
    };
    let dropout = Dropout::new(options.dropout, options.seed, Place::Embedding, 0);
    for (position, (dx, token)) in dx.chunks_exact_mut(dim).zip(tokens).enumerate() {
        let row = match &ends {
            None => Some(*token as usize),
            Some(ends) => ends.iter().position(|end| end == token),
        };
        let Some(row) = row else { continue };
        if let Some(dropout) = dropout {
            dropout.apply(dx, dim, position);
        }
        for (sum, dx) in sums[row * dim..].iter_mut().zip(dx) {
            *sum += *dx;
        }
    }
}
