//! What the writers of other programs' files are told.

use std::borrow::Cow;
use std::io;

use indicatif::ProgressBar;
use infer_core::format::TensorName;

use crate::io::export::tensor_type::TensorType;
use crate::io::foreign::{Parts, Values};
use crate::io::vocabulary::Vocabulary;

/// A model, and how to write it.
pub struct Job<'a> {
    /// A name for people.
    pub name: &'a str,
    /// The model.
    pub parts: Parts<'a>,
    /// Its vocabulary, which these files are of no use without.
    pub vocabulary: &'a Vocabulary,
    /// The type of the weights in the file.
    pub tensor_type: TensorType,
}

/// Weights that a person waits for: a bar shows how far they are, and an interruption ends them.
pub struct Watched<'a> {
    /// The weights.
    pub values: &'a dyn Values,
    /// The bar, of as many units as there are weights.
    pub progress: &'a ProgressBar,
    /// Whether to stop.
    pub stop: &'a dyn Fn() -> bool,
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
}
