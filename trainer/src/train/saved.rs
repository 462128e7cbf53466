//! The tensors of a model in a checkpoint: their names, and the way back.

use infer_core::Config;

use crate::io::checkpoint::{Checkpoint, Tensor, tensor_name};
use crate::io::lora::is_adapted;
use crate::io::tensors::{Shape, shapes};
use crate::model::{AdamW, Backend, Llama, Parameter};

/// Copies of the first and the second moments.
pub type Moments = [Vec<Vec<f32>>; 2];

/// What a checkpoint has: the weights or the adapters that are trained, and the moments of both.
///
/// # Errors
/// The device fails.
pub fn tensors<D: Backend>(model: &Llama<D>, optimizer: &mut AdamW<D>) -> anyhow::Result<Vec<Tensor>> {
    let trained = model.trained();
    // A and B in turn, then maybe the rows.
    let part = |i: usize, parameter: &Parameter<D>| match &model.adapters {
        None => "",
        Some(_) if !is_adapted(parameter.shape.name) => "_rows",
        Some(_) => ["_a", "_b"][i % 2],
    };
    let [moment1, moment2] = optimizer.moments(model)?;
    let weights = trained.iter().map(D::values).collect::<anyhow::Result<_>>()?;
    let kinds: [(_, Vec<Vec<f32>>); 3] = [("weight", weights), ("moment1", moment1), ("moment2", moment2)];
    let tensors = kinds.into_iter().flat_map(|(kind, values)| {
        let values = values.into_iter().zip(trained).enumerate();
        values.map(move |(i, (data, parameter))| tensor(&format!("{kind}{}", part(i, parameter)), parameter, data))
    });
    Ok(tensors.collect())
}

/// The weights under adapters.
///
/// # Errors
/// The device fails.
pub fn base<D: Backend>(model: &Llama<D>) -> anyhow::Result<Vec<Tensor>> {
    let parameters = model.parameters.iter().zip(model.to_vecs()?);
    Ok(parameters.map(|(parameter, data)| tensor("weight", parameter, data)).collect())
}

fn tensor<D: Backend>(kind: &str, parameter: &Parameter<D>, data: Vec<f32>) -> Tensor {
    let Shape { name, layer, rows, cols } = parameter.shape;
    Tensor { name: tensor_name(kind, name, layer), shape: vec![rows, cols], data }
}

/// The model of a checkpoint, and the moments of what it trains.
///
/// # Errors
/// A tensor is missing or has another shape, or the device has no memory.
pub fn restore<D: Backend>(
    mut checkpoint: Checkpoint,
    config: Config,
    device: &D,
) -> anyhow::Result<(Llama<D>, Moments)> {
    let lora = checkpoint.run.lora.map(|(lora, _)| lora);
    let weights: Vec<(Shape, &str)> = shapes(&config)?.into_iter().map(|shape| (shape, "")).collect();
    let trained = match lora {
        None => weights.clone(),
        Some(lora) => lora.parts(&config)?,
    };
    let mut take = |kind: &str, shapes: &[(Shape, &str)]| {
        let tensors = shapes.iter().map(|&(Shape { name, layer, rows, cols }, part)| {
            checkpoint.take(&tensor_name(&format!("{kind}{part}"), name, layer), &[rows, cols])
        });
        tensors.collect::<anyhow::Result<Vec<_>>>()
    };
    let mut model = Llama::from_slices(config, device, &take("weight", &weights)?)?;
    if let Some(lora) = lora {
        model.adapt_with(lora, &take("weight", &trained)?)?;
    }
    Ok((model, [take("moment1", &trained)?, take("moment2", &trained)?]))
}
