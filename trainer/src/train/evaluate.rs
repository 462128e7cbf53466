//! Measures with infer-core how well a model predicts the validation split of token shards.

use std::path::Path;

use anyhow::ensure;
use infer_core::Perplexity;
use rayon::prelude::*;

use crate::data::batches::Batches;
use crate::data::shards::Shards;
use crate::data::tokenizer::TokenizerFile;
use crate::io::inference::{Runnable, perplexity};

/// Opens the shards in `data` to evaluate the model that was read from `path`.
///
/// # Errors
/// The folder has no shards, they are damaged, or they have another vocabulary than the model.
pub fn open_shards(runnable: &Runnable, path: &Path, data: &Path) -> anyhow::Result<Shards> {
    let vocab_size = runnable.model()?.config().vocab_size;
    let own = TokenizerFile::from_bytes(path, runnable.tokenizer.bytes().to_vec())?;
    ensure!(
        Shards::are_in(data)?,
        "{} is no folder of token shards: name one with --data, or make it with `trainer pretokenize`",
        data.display()
    );
    let shards = Shards::open(data, Some(&own))?;
    ensure!(
        shards.vocab_size() == vocab_size && own.means_the_same(shards.tokenizer()),
        "{} and the shards in {} have different vocabularies ({} and {} tokens): pretokenize with the model's",
        path.display(),
        data.display(),
        vocab_size,
        shards.vocab_size()
    );
    Ok(shards)
}

/// Measures how well a model predicts the validation split, in windows of `window` tokens that are
/// read in parallel. Returns the number of windows, and the sums over them.
///
/// # Errors
/// The split is shorter than a window, or the model has fewer positions than it.
pub fn evaluate(runnable: &Runnable, shards: &Shards, window: usize) -> anyhow::Result<(usize, Perplexity)> {
    let (model, tokenizer) = (runnable.model()?, runnable.tokenizer.get());
    let batches = Batches::new(vec![shards.valid()], window, 0, "--window")?;
    let n = batches.sequences() as usize;
    let sums = (0..n).into_par_iter().map(|i| match batches.fixed(i, n, 1)? {
        Some(batch) => perplexity(&model, &tokenizer, &batch.x, &batch.y),
        None => Ok(Perplexity::default()),
    });
    let mut all = Perplexity::default();
    // Added in order, so that the sum does not depend on the threads.
    sums.collect::<anyhow::Result<Vec<Perplexity>>>()?.into_iter().for_each(|sum| all += sum);
    Ok((n, all))
}
