//! How well a model predicts a text.

use std::ops::AddAssign;

use crate::engine::Engine;
use crate::error::Error;
use crate::forward::{classify, forward};
use crate::model::Model;
use crate::state::State;

/// -ln of the probability that softmax gives to `token`: infinite for one that has no logit.
pub fn nats(logits: &[f32], token: u32) -> f64 {
    let Some(logit) = logits.get(token as usize) else { return f64::INFINITY };
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() - f64::from(logit - max)
}

/// How well tokens were predicted, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// [`nats`] of all tokens.
    pub nats: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Bytes of text that they stand for. BOS stands for none.
    pub bytes: usize,
}

impl Perplexity {
    /// Reads a window of a text, `tokens`, from an empty context, and adds how well each of the
    /// tokens that follow, `targets`, is predicted: the first by the first token alone. `bytes_of`
    /// gives the bytes of text that a target stands for, such as
    /// [`OwnedTokenizer::text_bytes`](crate::OwnedTokenizer::text_bytes).
    ///
    /// # Errors
    /// As [`forward`] and [`classify`].
    pub fn add_window(
        &mut self,
        model: &Model<'_>,
        state: &mut State<'_>,
        engine: &Engine<'_>,
        tokens: &[u32],
        targets: &[u32],
        bytes_of: impl Fn(u32) -> usize,
    ) -> Result<(), Error> {
        let batch = state.plan().limits.batch;
        state.rewind(0)?;
        for (tokens, targets) in tokens.chunks(batch).zip(targets.chunks(batch)) {
            forward(model, state, engine, tokens)?;
            for (row, &target) in targets.iter().enumerate() {
                self.nats += nats(classify(model, state, engine, row)?, target);
                self.bytes += bytes_of(target);
                self.tokens += 1;
            }
        }
        Ok(())
    }

    /// Nats per token.
    pub fn per_token(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// e to the nats per token: among how many equally likely tokens the model is as uncertain.
    pub fn perplexity(&self) -> f64 {
        self.per_token().exp()
    }

    /// Nats per byte: comparable between vocabularies.
    pub fn per_byte(&self) -> f64 {
        self.nats / self.bytes as f64
    }
}

impl AddAssign for Perplexity {
    fn add_assign(&mut self, other: Perplexity) {
        self.nats += other.nats;
        self.tokens += other.tokens;
        self.bytes += other.bytes;
    }
}
