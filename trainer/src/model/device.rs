//! dfdx's types by shorter names, and what its devices leave out.

use dfdx::prelude::{Device, HasErr, Momentum, NoneTape, SgdConfig, Storage, Tensor, WeightDecay};

/// Accumulated gradients of a model's parameters, as
/// [`Llama::zero_gradients`](super::Llama::zero_gradients) makes them.
pub type Gradients<D> = dfdx::prelude::Gradients<f32, D>;
/// A matrix on a device, rows = outputs.
pub type Matrix<D, T = NoneTape> = Tensor<(usize, usize), f32, D, T>;
/// Numbers on a device.
pub(super) type Buffer<D> = <D as Storage<f32>>::Vec;

/// Wraps an error of dfdx, which is not a `std::error::Error`.
pub(super) fn device_error<D: HasErr>(error: D::Err) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error}")
}

/// target = target · target_factor + source · source_factor, on any device. dfdx's optimisers are
/// its only arithmetic on plain buffers: this is SGD with learning rate 0, where `target` is the
/// momentum and `source` stands for the weights that decay.
pub(super) fn combine<D: Device<f32>>(
    device: &D,
    target: &mut Buffer<D>,
    target_factor: f32,
    mut source: Matrix<D>,
    source_factor: f32,
) -> Result<(), D::Err> {
    let sgd = SgdConfig {
        lr: 0.0,
        momentum: Some(Momentum::Classic(f64::from(target_factor))),
        weight_decay: Some(WeightDecay::L2(f64::from(source_factor))),
    };
    let zeros = Storage::<f32>::try_alloc_grad(device, target)?;
    sgd.try_update(&mut source, target, &zeros)
}
