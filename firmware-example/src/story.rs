//! One story: prompt in, text out, and a hash of all logits on the way.
//!
//! The build script runs this file on the host and `main.rs` runs it on the chip, with the same models. Equal hashes mean
//! equal bits of every logit.

use infer_core::{
    BOS, Engine, Error, HASH_START, HotBuffers, KvBuffers, KvType, Limits, MergeSlot, Model, Plan, ProbIndex, Sampler,
    State, Tokenizer, classify, forward, hash_logits,
};

pub const PROMPT: &str = "Once upon a time";
pub const LIMITS: Limits = Limits { max_seq: 64, batch: 1, threads: 1, kv: KvType::F32 };
pub const MAX_PROMPT_TOKENS: usize = Tokenizer::max_tokens(PROMPT.len());

/// The memory of a run, of at least the sizes in the plan and of `MAX_PROMPT_TOKENS`.
pub struct Memory<'a> {
    pub hot_f32: &'a mut [f32],
    pub hot_i8: &'a mut [i8],
    pub kv: &'a mut [f32],
    pub candidates: &'a mut [ProbIndex],
    pub merge: &'a mut [MergeSlot],
    pub tokens: &'a mut [u32],
}

/// Continues `prompt` up to the last position, or until the model ends the sequence. The text goes to `write`, piece by
/// piece. Returns the hash of all logits.
pub fn tell(
    model: &[u8],
    plan: &Plan,
    tokenizer: &Tokenizer<'_>,
    prompt: &str,
    memory: Memory<'_>,
    mut write: impl FnMut(&[u8]),
) -> Result<u64, Error> {
    let engine = Engine::native();
    let model = Model::from_bytes(model)?;
    let hot = HotBuffers { f32: memory.hot_f32, i8: memory.hot_i8 };
    let mut state = State::new(plan, hot, KvBuffers::F32(memory.kv))?;
    let mut sampler = Sampler::new(1.0, 0.9, 1)?;

    let n = tokenizer.encode(prompt, true, memory.merge, memory.tokens)?;
    let prompt = memory.tokens.get(..n).unwrap_or(&[]);
    let mut token = BOS; // as the prompt begins
    let mut hash = HASH_START;
    for pos in 0..plan.limits.max_seq {
        forward(&model, &mut state, &engine, &[token], pos)?;
        let logits = classify(&model, &mut state, &engine, 0)?;
        hash = hash_logits(hash, logits);
        let next = match prompt.get(pos + 1) {
            Some(next) => *next,
            None => sampler.sample(logits, memory.candidates)?,
        };
        if next == BOS {
            break;
        }
        write(tokenizer.decode(token, next)?);
        token = next;
    }
    Ok(hash)
}
