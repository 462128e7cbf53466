//! What an importer of a format is told, and what it gives.

use std::path::PathBuf;

use anyhow::ensure;
use infer_core::Config;

use crate::io::foreign::Values;

/// What the caller knows about a model whose files do not say it.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// A params.json of Meta's layout.
    pub params: Option<PathBuf>,
    /// Number of attention heads.
    pub n_heads: Option<usize>,
    /// Positions to keep of a longer context.
    pub max_seq_len: Option<usize>,
    /// The vocabulary, where it does not lie beside the model.
    pub tokenizer: Option<PathBuf>,
}

/// A model without its vocabulary.
pub struct Model {
    /// Its configuration.
    pub config: Config,
    /// The tokens that end a text, if the model's own files tell.
    pub eos: Option<Vec<u32>>,
    /// Its weights.
    pub values: Box<dyn Values>,
}

/// The positions to keep of a model that was taught this many.
///
/// # Errors
/// The caller asks for none, or for more than there are.
pub fn seq_len(taught: usize, hints: &Hints) -> anyhow::Result<usize> {
    let kept = hints.max_seq_len.unwrap_or(taught);
    ensure!((1..=taught).contains(&kept), "--max-seq-len {kept}: the model was taught {taught} positions");
    Ok(kept)
}
