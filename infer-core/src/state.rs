//! The buffers of a forward pass, all borrowed from the caller, and how far the pass has come.

use crate::cache::{Cache, KvBuffers};
use crate::config::Config;
use crate::error::Error;
use crate::math::rounds_to_nearest;
use crate::plan::{HotSizes, Plan, XQ_ALIGN, scratch_len, scratch_parts};

/// The caller's memory for activations: fast memory on a chip that has two kinds.
#[derive(Debug)]
pub struct HotBuffers<'s> {
    /// [`Plan::hot_f32`] elements.
    pub f32: &'s mut [f32],
    /// [`Plan::hot_i8`] elements.
    pub i8: &'s mut [i8],
}

/// Activations, KV cache and progress of one sequence.
///
/// It belongs to one thread or task at a time, whose floating point registers nobody else changes:
/// see `docs/FIRMWARE.md`.
#[derive(Debug)]
pub struct State<'s> {
    pub(crate) plan: Plan,
    pub(crate) x: &'s mut [f32],    // (batch, dim), the residual stream
    pub(crate) xb: &'s mut [f32],   // (batch, dim), inside a residual branch
    pub(crate) q: &'s mut [f32],    // (batch, dim), queries; then the output of wo
    pub(crate) hb: &'s mut [f32],   // (batch, max(hidden_dim, kv_dim)), keys; then the output of w1
    pub(crate) hb2: &'s mut [f32],  // (batch, max(hidden_dim, kv_dim)), values; then the output of w3
    pub(crate) rope: &'s mut [f32], // (batch, head_size), cos and sin in turn
    pub(crate) freq: &'s mut [f32], // (head_size / 2), angle per position
    pub(crate) int8: Int8Scratch<'s>,
    pub(crate) scratch: &'s mut [f32], // (scratch_parts, scratch_len), of a task each
    pub(crate) logits: &'s mut [f32],  // (vocab_size)
    pub(crate) cache: Cache<'s>,
    pub(crate) progress: Progress,
    /// Positions with valid keys and values in every layer.
    pub(crate) filled: usize,
}

/// Room for activations in int8: the input of an int8 matrix, or the queries of an int8 KV cache.
#[derive(Debug)]
pub(crate) struct Int8Scratch<'s> {
    pub q: &'s mut [i8],  // (batch, max(dim, hidden_dim)) of 2 bytes
    pub s: &'s mut [f32], // (batch, max(max(dim, hidden_dim) / group_size, n_heads)), their scales
}

/// How far the pass over the current tokens has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Position of the first of the current tokens.
    pub pos: usize,
    /// Number of current tokens; 0 when there is no pass.
    pub rows: usize,
    /// Layers done.
    pub layer: usize,
    /// [`Model::address`](crate::Model::address) of the model that computes the sequence.
    pub model: usize,
}

impl<'s> State<'s> {
    /// Cuts the caller's buffers into the parts that `plan` counts. Their contents need not be
    /// initialised to anything in particular; larger buffers are accepted.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::Unsupported`] when `kv` is not of the planned type,
    /// [`Error::ModelMismatch`] for a plan that is not what [`Config::plan`] gives, and
    /// [`Error::Rounding`] when the calling thread or task does not round to nearest: its results
    /// would differ from those of all others.
    pub fn new(plan: &Plan, hot: HotBuffers<'s>, kv: KvBuffers<'s>) -> Result<State<'s>, Error> {
        let need = |buffer, need: usize, have: usize| {
            if have < need { Err(Error::BufferTooSmall { buffer, need, have }) } else { Ok(()) }
        };
        if plan.config.plan(plan.limits)? != *plan {
            return Err(Error::ModelMismatch); // changed by hand
        }
        if !rounds_to_nearest() {
            return Err(Error::Rounding);
        }
        need("hot.f32", plan.hot_f32, hot.f32.len())?;
        need("hot.i8", plan.hot_i8, hot.i8.len())?;
        let cache = Cache::new(plan, kv)?;

        let skip = hot.i8.as_ptr().align_offset(XQ_ALIGN).min(hot.i8.len());
        let (_, xq) = hot.i8.split_at_mut_checked(skip).unwrap_or_default();
        let config = plan.config;
        let batch = plan.limits.batch;
        let sizes = HotSizes::new(&config, plan.limits.kv);
        let mut rest = hot.f32;
        // The plan counted exactly these parts, so none of them can fail.
        let mut take = |n: usize| {
            let have = rest.len();
            let error = Error::BufferTooSmall { buffer: "hot.f32", need: n, have };
            rest.split_off_mut(..n).ok_or(error)
        };
        let x = take(batch.saturating_mul(sizes.dim))?;
        let xb = take(batch.saturating_mul(sizes.dim))?;
        let q = take(batch.saturating_mul(sizes.dim))?;
        let hb = take(batch.saturating_mul(sizes.hidden))?;
        let hb2 = take(batch.saturating_mul(sizes.hidden))?;
        let rope = take(batch.saturating_mul(sizes.rope))?;
        let xs = take(batch.saturating_mul(sizes.scales))?;
        let freq = take(config.head_size() / 2)?;
        let parts = scratch_parts(&config, &plan.limits);
        let scratch = take(parts.saturating_mul(scratch_len(&config, &plan.limits)))?;
        let logits = take(config.vocab_size)?;
        for (i, freq) in freq.iter_mut().enumerate() {
            *freq = config.rope.frequency(i, config.head_size());
        }
        let int8 = Int8Scratch { q: xq, s: xs };
        let progress = Progress::default();
        Ok(State { plan: *plan, x, xb, q, hb, hb2, rope, freq, int8, scratch, logits, cache, progress, filled: 0 })
    }

    /// The configuration of the model that the state was planned for.
    pub fn config(&self) -> &Config {
        &self.plan.config
    }

    /// The plan that the state was made with.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Positions of the sequence so far: the next token goes here.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Forgets the positions from `pos` on, and the current pass, so that
    /// [`classify`](crate::classify) has no row afterwards; 0 begins a new sequence.
    ///
    /// # Errors
    /// [`Error::Position`] when `pos` is above [`filled`](State::filled); the state is then as
    /// before.
    pub fn rewind(&mut self, pos: usize) -> Result<(), Error> {
        if pos > self.filled {
            let max_seq = self.plan.limits.max_seq;
            return Err(Error::Position { pos, n_tokens: 0, filled: self.filled, max_seq });
        }
        self.filled = pos;
        self.progress.rows = 0;
        Ok(())
    }

    /// The logits (vocab_size) of the last [`classify`](crate::classify).
    pub fn logits(&mut self) -> &mut [f32] {
        self.logits
    }
}
