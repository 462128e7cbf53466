//! The tensors that a training keeps, by infer-core's table.

use infer_core::format::{Header, TensorName, Version};
use infer_core::{Config, Error};

/// One weight tensor of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Which tensor, in infer-core's names.
    pub name: TensorName,
    /// Layer, 0 for the tensors that are there once.
    pub layer: usize,
    /// Outputs of the matrix; 1 for a norm weight.
    pub rows: usize,
    /// Inputs of the matrix.
    pub cols: usize,
}

impl Shape {
    /// Number of values.
    pub fn size(&self) -> usize {
        self.rows * self.cols
    }

    /// The tensor is the weight of a norm, not a matrix.
    pub fn is_norm(&self) -> bool {
        matches!(self.name, TensorName::RmsAtt | TensorName::RmsFfn | TensorName::RmsFinal)
    }
}

/// The shape of every parameter, in the order of llama2.c's first format, layer by layer within a
/// stack. Checkpoints name tensors by it, and have them in this order.
///
/// # Errors
/// The configuration breaks a rule of [`Config::check`].
pub fn shapes(config: &Config) -> Result<Vec<Shape>, Error> {
    let layout = Header::new(Version::V0, *config).layout()?;
    // The tables of rotary angles are not trained.
    let trained = layout.iter().filter(|t| !matches!(t.name, TensorName::FreqCisReal | TensorName::FreqCisImag));
    let layers =
        trained.flat_map(|t| (0..t.count).map(move |layer| Shape { name: t.name, layer, rows: t.rows, cols: t.cols }));
    Ok(layers.collect())
}
