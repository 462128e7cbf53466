//! One story: prompt in, text out, and a hash of all logits on the way.
//!
//! The build script runs this file on the host and the images run it on the chip, with the same
//! model. Equal hashes mean equal bits of every logit.

use infer_core::{
    BOS, Engine, Error, HASH_START, Limits, MergeSlot, Model, ProbIndex, Sampler, State, Tokenizer, begin, classify,
    forward, hash_logits, step,
};

use crate::settings;

/// The limits of a run: the settings, with at most the positions that the model was trained for.
pub const fn limits(seq_len: usize) -> Limits {
    let max_seq = if settings::MAX_SEQ < seq_len { settings::MAX_SEQ } else { seq_len };
    Limits::new(max_seq).with_kv(settings::KV)
}

/// Scratch of the sampler, of the size in the plan, and of the tokenizer, with
/// `Tokenizer::max_tokens` of the prompt.
pub struct Scratch<'a> {
    pub candidates: &'a mut [ProbIndex],
    pub merge: &'a mut [MergeSlot],
    pub tokens: &'a mut [u32],
}

/// A story to tell.
pub struct Request<'a> {
    pub prompt: &'a str,
    pub temperature: f32,
    pub top_p: f32,
    pub seed: u64,
    /// Positions to run for, prompt included; those of the plan are the most.
    pub steps: usize,
}

impl Request<'_> {
    /// A story with the settings of `settings.rs`.
    pub const fn new(prompt: &str) -> Request<'_> {
        let (temperature, top_p, seed) = (settings::TEMPERATURE, settings::TOP_P, settings::SEED);
        Request { prompt, temperature, top_p, seed, steps: usize::MAX }
    }
}

/// The outcome of a story.
pub struct Summary {
    /// Positions computed.
    pub positions: usize,
    /// Whether the model ended the story.
    pub ended: bool,
    /// Hash of all logits.
    pub hash: u64,
}

/// The receiver of a story.
pub trait Listener {
    /// The text of the token that follows position `pos`.
    fn text(&mut self, pos: usize, token: u32, text: &[u8]);
    /// Called after each layer, with time for watchdogs, tasks or the serial line. False ends the
    /// story.
    fn between_layers(&mut self) -> bool;
}

/// Continues the prompt up to the last position, or until the model ends the sequence.
pub fn tell(
    model: &[u8],
    tokenizer: &Tokenizer<'_>,
    engine: &Engine<'_>,
    request: &Request<'_>,
    mut state: State<'_>,
    scratch: &mut Scratch<'_>,
    listener: &mut impl Listener,
) -> Result<Summary, Error> {
    let model = Model::from_bytes(model)?;
    let header = model.header(); // read from the file: once, not for each token
    let mut sampler = Sampler::new(request.temperature, request.top_p, request.seed)?;
    let n_tokens = tokenizer.encode(request.prompt, true, scratch.merge, scratch.tokens)?;
    let max_seq = state.plan().limits.max_seq.min(request.steps);
    if n_tokens > max_seq {
        return Err(Error::Position { pos: 0, n_tokens, filled: 0, max_seq });
    }
    let prompt = scratch.tokens.get(..n_tokens).unwrap_or(&[]);
    let mut token = BOS; // the first token of every prompt
    let mut summary = Summary { positions: 0, ended: false, hash: HASH_START };
    for pos in 0..max_seq {
        begin(&model, &mut state, &[token])?;
        let mut more = true;
        while more {
            more = step(&model, &mut state, engine)?;
            if !listener.between_layers() {
                return Ok(summary);
            }
        }
        let logits = classify(&model, &mut state, engine, 0)?;
        summary.positions = pos + 1;
        summary.hash = hash_logits(summary.hash, logits);
        let next = match prompt.get(pos + 1) {
            Some(next) => *next,
            None => sampler.sample(logits, scratch.candidates)?,
        };
        if header.ends(next) {
            summary.ended = true;
            break;
        }
        listener.text(pos, next, tokenizer.decode(token, next)?);
        token = next;
    }
    Ok(summary)
}

/// Hashes all logits of `tokens` greedy tokens from BOS on. Calls `lap` before and after each, with
/// its position.
pub fn greedy(
    model: &[u8],
    engine: &Engine<'_>,
    mut state: State<'_>,
    tokens: usize,
    mut lap: impl FnMut(usize),
) -> Result<u64, Error> {
    let model = Model::from_bytes(model)?;
    let mut sampler = Sampler::new(0.0, 0.0, 1)?;
    let (mut token, mut hash) = (BOS, HASH_START);
    for pos in 0..tokens {
        lap(pos);
        forward(&model, &mut state, engine, &[token])?;
        let logits = classify(&model, &mut state, engine, 0)?;
        token = sampler.sample(logits, &mut [])?; // temperature 0 leaves the logits as they are
        lap(pos);
        hash = hash_logits(hash, logits);
    }
    Ok(hash)
}
