//! What the writers of other programs' files are told.

use crate::io::export::tensor_type::TensorType;
use crate::io::foreign::Parts;
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
