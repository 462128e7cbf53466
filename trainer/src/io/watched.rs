//! The weights of a model that is imported or exported while a person waits.

use std::borrow::Cow;
use std::io;

use indicatif::ProgressBar;
use infer_core::Error;
use infer_core::format::TensorName;

use crate::io::foreign::{Foreign, Values};
use crate::io::tensors::shapes;
use crate::report::bar;

/// Weights that a person waits for: a bar shows how far they are, and an interruption ends them.
pub struct Watched<'a> {
    values: &'a dyn Values,
    /// The bar, of as many units as there are weights.
    progress: ProgressBar,
    stop: &'a dyn Fn() -> bool,
}

impl<'a> Watched<'a> {
    /// Shows a bar for the weights of a model. `stop` is asked before each tensor.
    ///
    /// # Errors
    /// The configuration breaks a rule.
    pub fn new(model: &'a Foreign, stop: &'a dyn Fn() -> bool) -> Result<Watched<'a>, Error> {
        let weights = shapes(&model.header.config)?.iter().map(|shape| shape.size() as u64).sum();
        let progress = bar::new(weights, "{percent}% of the weights, {eta} left");
        Ok(Watched { values: &*model.values, progress, stop })
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.progress.finish_and_clear();
    }
}

impl Values for Watched<'_> {
    fn read(&self, name: TensorName, layer: usize) -> io::Result<Cow<'_, [f32]>> {
        if (self.stop)() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        let values = self.values.read(name, layer)?;
        self.progress.inc(values.len() as u64);
        Ok(values)
    }

    fn table(&self, name: TensorName) -> io::Result<Option<Vec<f32>>> {
        self.values.table(name)
    }
}
