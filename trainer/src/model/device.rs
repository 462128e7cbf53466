//! dfdx's types by shorter names.

use dfdx::prelude::{HasErr, NoneTape, Tensor};

/// A matrix on a device, rows = outputs.
pub type Matrix<D, T = NoneTape> = Tensor<(usize, usize), f32, D, T>;

/// Wraps an error of dfdx, which is not a `std::error::Error`.
pub(super) fn device_error<D: HasErr>(error: D::Err) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error}")
}
