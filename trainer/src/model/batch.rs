//! The input of a step: token windows, and the options of their loss.

use anyhow::{Context, bail, ensure};
use infer_core::Config;

/// The target of a position that does not count.
pub const IGNORED: u32 = u32::MAX;

/// Token windows that a step trains on together.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `sequences * length` tokens.
    pub tokens: &'a [u32],
    /// The token after each, or [`IGNORED`].
    pub targets: &'a [u32],
    /// Where in its window the text of each token begins, if a window has several texts: attention
    /// looks no further back.
    pub starts: Option<&'a [u32]>,
    /// Number of windows.
    pub sequences: usize,
    /// Tokens of a window, at most the model's `seq_len`.
    pub length: usize,
}

/// Options of the loss. The default is the plain cross entropy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Probability of dropping an activation, as in llama2.c: after the embedding, in the attention
    /// weights and before both residual additions. 0 drops nothing.
    pub dropout: f32,
    /// Seed of the choice of dropped activations. Each micro-batch needs a new one, or the same are
    /// dropped again.
    pub seed: u64,
    /// Teacher to distil from.
    pub teacher: Option<Teacher<'a>>,
}

/// A teacher's logits for every position of a batch.
///
/// loss = (1 - weight) · cross entropy with the targets + weight · temperature² · KL(teacher ‖
/// student), the KL divergence between both softmax distributions at `temperature`, averaged over
/// the positions that count (Hinton et al. 2015, arXiv:1503.02531).
#[derive(Clone, Copy, Debug)]
pub struct Teacher<'a> {
    /// The teacher's logits, `(sequences * length, vocab_size)`. Rows of ignored positions are not
    /// read.
    pub logits: &'a [f32],
    /// Weight of the teacher in the loss: 0 (text only) to 1 (teacher only).
    pub weight: f32,
    /// Temperature that softens both distributions; above 0.
    pub temperature: f32,
}

impl Batch<'_> {
    /// Checks the batch and the options.
    ///
    /// # Errors
    /// The batch does not fit the model, or an option is out of range.
    pub(super) fn check(&self, config: &Config, options: &Options) -> anyhow::Result<()> {
        check_tokens(config, self.tokens, self.sequences, self.length)?;
        let (n, vocab_size) = (self.tokens.len(), config.vocab_size);
        ensure!(self.targets.len() == n, "{} targets for {n} tokens", self.targets.len());
        let outside = self.targets.iter().find(|t| **t != IGNORED && **t as usize >= vocab_size);
        if let Some(target) = outside {
            bail!(
                "target {target} is outside the model's vocabulary of {vocab_size}: were the shards made with another?"
            );
        }
        ensure!(self.targets.iter().any(|t| *t != IGNORED), "no target in the batch: every position is ignored");
        self.check_starts()?;
        ensure!((0.0..1.0).contains(&options.dropout), "dropout is {}, it must be in 0..1", options.dropout);
        if let Some(teacher) = options.teacher {
            let logits = teacher.logits.len();
            ensure!(logits == n * vocab_size, "{logits} logits of the teacher for {n} tokens x {vocab_size}");
            ensure!((0.0..=1.0).contains(&teacher.weight), "teacher weight {} is not in 0..=1", teacher.weight);
            ensure!(teacher.temperature > 0.0, "temperature {} of the teacher is not above 0", teacher.temperature);
        }
        Ok(())
    }

    /// A text begins at a position, or goes on from the position before.
    fn check_starts(&self) -> anyhow::Result<()> {
        let Some(starts) = self.starts else { return Ok(()) };
        ensure!(starts.len() == self.tokens.len(), "{} starts for {} tokens", starts.len(), self.tokens.len());
        for window in starts.chunks_exact(self.length) {
            let mut before = 0;
            for (position, &start) in window.iter().enumerate() {
                ensure!(
                    start as usize == position || start == before,
                    "a text of position {position} begins at {start}"
                );
                before = start;
            }
        }
        Ok(())
    }
}

/// Checks tokens.
///
/// # Errors
/// The tokens are not `sequences * length` of the vocabulary, or the windows are too long.
pub(super) fn check_tokens(config: &Config, tokens: &[u32], sequences: usize, length: usize) -> anyhow::Result<()> {
    let Config { vocab_size, seq_len, .. } = *config;
    ensure!(length >= 1 && length <= seq_len, "windows of {length} tokens, the model takes 1 to {seq_len}");
    let n = sequences.checked_mul(length).context("batch too large")?;
    ensure!(sequences >= 1 && tokens.len() == n, "{} tokens given for {sequences} x {length}", tokens.len());
    if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab_size) {
        bail!("token {token} is outside the model's vocabulary of {vocab_size}: were the shards made with another?");
    }
    Ok(())
}
