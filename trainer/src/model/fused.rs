//! The whole model as one operation on dfdx's tape, for the CPU.

use dfdx::prelude::{Cpu, Rank0, Tape, Tensor};

use super::{Batch, Llama, Options, composed, device_error};

/// Scratch memory that is kept from step to step.
#[derive(Default)]
pub struct Workspace;

/// Loss of a checked batch.
///
/// # Errors
/// Out of memory.
pub fn loss<T: Tape<f32, Cpu>>(
    model: &Llama<Cpu>,
    batch: &Batch,
    options: &Options,
    tape: T,
) -> anyhow::Result<Tensor<Rank0, f32, Cpu, T>> {
    let _workspace = model.workspace.lock();
    composed::loss(model, batch, options, tape).map_err(device_error::<Cpu>)
}

/// Logits of checked tokens.
///
/// # Errors
/// Out of memory.
pub fn logits(model: &Llama<Cpu>, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<Vec<f32>> {
    composed::logits_vec(model, tokens, sequences, length).map_err(device_error::<Cpu>)
}
