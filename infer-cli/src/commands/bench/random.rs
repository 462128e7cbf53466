//! Models of well-known shapes with random weights.

use anyhow::Context;
use infer_core::format::{Header, Tensor, Version};
use infer_core::{ModelBytes, WeightType, shapes};

use crate::args::{Shape, Weights};

/// A version 1 or 2 file with random weights.
pub fn model(shape: Shape, weights: Weights) -> anyhow::Result<ModelBytes> {
    let config = match shape {
        Shape::S260K if weights == Weights::Int8 => shapes::FIRMWARE,
        Shape::S260K => shapes::STORIES_260K,
        Shape::S15M => shapes::STORIES_15M,
        Shape::S42M => shapes::STORIES_42M,
        Shape::S110M => shapes::STORIES_110M,
        Shape::S1B => shapes::TINYLLAMA_1B,
    };
    let header = match weights {
        Weights::F32 => Header::new(Version::V1, config),
        Weights::Int8 => Header::new(Version::V2, config.quantized()?),
    };
    let layout = header.layout()?;
    let mut file = ModelBytes::zeros(usize::try_from(layout.file_bytes)?)
        .with_context(|| format!("random weights of {} bytes: take a smaller --shape", layout.file_bytes))?;
    let bytes = file.bytes_mut();
    bytes[..header.size()].copy_from_slice(&header.to_bytes()?[..header.size()]);
    let mut random = 0x9e37_79b9_7f4a_7c15;
    for tensor in layout.iter() {
        let stride = tensor.stride as usize;
        for layer in bytes[tensor.offset as usize..][..stride * tensor.count].chunks_exact_mut(stride) {
            fill(layer, &tensor, &mut random);
        }
    }
    Ok(file)
}

/// Draws one layer of a tensor. Weights in ±1/√cols keep activations near 1; norms have 1.
fn fill(layer: &mut [u8], tensor: &Tensor, random: &mut u64) {
    let scale = 1.0 / (tensor.cols as f32).sqrt();
    let (q, f32s) = match tensor.weights {
        WeightType::F32 => layer.split_at_mut(0),
        WeightType::Q8 { .. } => layer.split_at_mut(tensor.rows * tensor.cols),
    };
    q.iter_mut().for_each(|q| *q = (next(random) >> 56) as u8);
    for bytes in f32s.chunks_exact_mut(4) {
        let value = match tensor.weights {
            WeightType::F32 if tensor.rows == 1 => 1.0,
            WeightType::F32 => ((next(random) >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale,
            WeightType::Q8 { .. } => scale / 127.0,
        };
        bytes.copy_from_slice(&f32::to_le_bytes(value));
    }
}

/// xorshift64 (Marsaglia, 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
