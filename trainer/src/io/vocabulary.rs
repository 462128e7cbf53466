//! The vocabulary of a model, in the form that lies beside it.

/// The contents of a vocabulary file.
#[derive(Clone, Debug, PartialEq)]
pub enum Vocabulary {
    /// A tokenizer.bin.
    Bin(Vec<u8>),
    /// A tokenizer.json, for vocabularies that a tokenizer.bin cannot carry exactly.
    Json(Vec<u8>),
}

impl Vocabulary {
    /// Contents of the file.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Vocabulary::Bin(bytes) | Vocabulary::Json(bytes) => bytes,
        }
    }
}
