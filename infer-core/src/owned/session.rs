//! One sequence of a model: tokens go in, the next one comes out.

use std::vec::Vec;

use super::buffers::Buffers;
use super::memory::vec_of;
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::{begin_at, classify, step};
use crate::kernels::Kernels;
use crate::model::Model;
use crate::runner::Runner;
use crate::sampler::{ProbIndex, Sampler, penalize};
use crate::state::State;
use crate::tokenizer::BOS;

/// A model with the memory of one sequence, threads, and a sampler.
pub struct Session<'a> {
    model: Model<'a>,
    state: State<'a>,
    engine: Engine<'a>,
    /// Picks the tokens.
    pub sampler: Sampler,
    scratch: Vec<ProbIndex>,
    /// All tokens read, for the repetition penalty.
    tokens: Vec<u32>,
    penalty: f32,
    /// Last tokens that the penalty looks at.
    last_n: usize,
}

impl<'a> Session<'a> {
    /// An empty sequence, computed by the machine's best kernels on the runner's threads.
    ///
    /// # Errors
    /// [`Error::Rounding`], [`Error::OutOfMemory`].
    pub fn new(
        model: Model<'a>,
        buffers: &'a mut Buffers,
        runner: &'a dyn Runner,
        sampler: Sampler,
    ) -> Result<Session<'a>, Error> {
        let scratch = vec_of("sampler scratch", ProbIndex::default(), model.config().vocab_size)?;
        Ok(Session {
            model,
            state: buffers.state()?,
            engine: Engine::new(Kernels::detect(), runner),
            sampler,
            scratch,
            tokens: Vec::new(),
            penalty: 1.0,
            last_n: 0,
        })
    }

    /// Makes those of the `last_n` tokens read last less likely that came up in them, see
    /// [`penalize`]; 1 turns it off.
    pub fn penalize_repeats(&mut self, penalty: f32, last_n: usize) {
        (self.penalty, self.last_n) = (penalty, last_n);
    }

    /// Positions used so far.
    pub fn pos(&self) -> usize {
        self.state.filled()
    }

    /// The last token read: BOS if there is none.
    pub fn last_token(&self) -> u32 {
        self.tokens.last().copied().unwrap_or(BOS)
    }

    /// Reads tokens behind those that were read before, in batches of the planned size.
    ///
    /// # Errors
    /// As [`begin`](crate::begin): above all [`Error::Position`] when the context is full.
    pub fn read(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.read_from(self.pos(), tokens, || false)
    }

    /// Reads tokens from position `pos` on, in batches; what was read from there on before is
    /// forgotten. Ends early once `stopped`, which it asks after each layer: [`pos`](Session::pos)
    /// tells how far it came.
    ///
    /// # Errors
    /// As [`read`](Session::read); the batch that fails changes nothing.
    pub fn read_from(&mut self, pos: usize, tokens: &[u32], stopped: impl Fn() -> bool) -> Result<(), Error> {
        if tokens.is_empty() && pos != self.pos() {
            self.state.rewind(pos)?;
            self.tokens.truncate(pos);
        }
        let batch = self.state.plan().limits.batch;
        for (i, tokens) in tokens.chunks(batch).enumerate() {
            let pos = pos + i * batch;
            begin_at(&self.model, &mut self.state, tokens, pos)?;
            self.tokens.truncate(pos);
            while step(&self.model, &mut self.state, &self.engine)? {
                if stopped() {
                    return Ok(());
                }
            }
            self.tokens.extend(tokens);
        }
        Ok(())
    }

    /// Hands out the bytes of the KV cache that the first `positions` positions take, stretch by
    /// stretch, for [`resume`](Session::resume) to bring back.
    ///
    /// # Errors
    /// Those of `save`; nothing is handed out for more positions than were read.
    pub fn save<E>(&mut self, positions: usize, mut save: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if positions > self.pos() {
            return Ok(());
        }
        self.state.cache.visit(positions, |bytes: &mut [u8]| save(bytes))
    }

    /// Takes up a sequence of these tokens, whose keys and values `load` brings back: stretches as
    /// [`save`](Session::save) handed them out for the same model, KV type and number of positions;
    /// the size of the context may differ. At least one more token must be read before the next one
    /// is picked.
    ///
    /// # Errors
    /// Those of `load`, and [`Error::Position`] for more tokens than the context has positions. The
    /// sequence is empty then.
    pub fn resume<E: From<Error>>(
        &mut self,
        tokens: &[u32],
        load: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.state.rewind(0)?;
        self.tokens.clear();
        let (n_tokens, max_seq) = (tokens.len(), self.state.plan().limits.max_seq);
        if n_tokens > max_seq {
            return Err(Error::Position { pos: 0, n_tokens, filled: 0, max_seq }.into());
        }
        self.state.cache.visit(n_tokens, load)?;
        self.state.filled = n_tokens;
        self.state.progress.model = self.model.address();
        self.tokens.extend(tokens);
        Ok(())
    }

    /// Reads tokens and picks the one that follows them.
    ///
    /// # Errors
    /// As [`read`](Session::read) and [`next_token`](Session::next_token).
    pub fn next_after(&mut self, tokens: &[u32]) -> Result<u32, Error> {
        self.read(tokens)?;
        self.next_token()
    }

    /// Picks the token that follows the last one read.
    ///
    /// # Errors
    /// As [`classify`], [`penalize`] and [`Sampler::sample`]; [`Error::NotReady`] before a token
    /// was read.
    pub fn next_token(&mut self) -> Result<u32, Error> {
        let last = self.state.progress.rows.checked_sub(1).ok_or(Error::NotReady)?;
        let logits = classify(&self.model, &mut self.state, &self.engine, last)?;
        if self.penalty != 1.0 {
            let start = self.tokens.len().saturating_sub(self.last_n);
            let mut recent = self.tokens.get(start..).unwrap_or_default().to_vec();
            recent.sort_unstable();
            recent.dedup(); // the time grows with the square of their number
            penalize(logits, &recent, self.penalty)?;
        }
        self.sampler.sample(logits, &mut self.scratch)
    }
}
