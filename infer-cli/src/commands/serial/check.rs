//! Compares what the firmware computed with what this machine computes.

use std::io::{self, Write};

use anyhow::bail;
use infer_core::{
    BOS, Engine, HASH_START, Kernels, KvType, Limits, ProbIndex, Sampler, Serial, classify, forward, hash_logits,
};
use infer_link::{Request, Statistics};
use infer_text::{Special, TextTokenizer};

use super::link::{Firmware, stopped};
use crate::session::{ModelFiles, buffers};

/// Runs the model here with the same settings, and compares tokens and logits.
pub fn check(
    files: &ModelFiles,
    tokenizer: &TextTokenizer,
    request: Request<'_>,
    firmware: &Firmware,
    tokens: &[u32],
    statistics: &Statistics,
) -> anyhow::Result<()> {
    let Request::Tell { temperature, top_p, seed, steps, prompt } = request else { return Ok(()) };
    let model = files.model()?;
    let prompt = [tokenizer.bos(), &tokenizer.encode(prompt, Special::AsText)?].concat();
    let max_seq = firmware.max_seq.min(steps as usize);
    let kv = if firmware.kv_int8 { KvType::Q8 } else { KvType::F32 };
    let mut buffers = buffers(model.config(), Limits::new(max_seq).with_kv(kv))?;
    let mut state = buffers.state()?;
    let engine = Engine::new(Kernels::detect(), &Serial);
    let mut sampler = Sampler::new(temperature, top_p, seed)?;
    let mut scratch = vec![ProbIndex::default(); model.config().vocab_size];
    let (mut token, mut hash, mut here) = (BOS, HASH_START, Vec::new());
    for pos in 0..statistics.positions as usize {
        forward(&model, &mut state, &engine, &[token])?;
        let logits = classify(&model, &mut state, &engine, 0)?;
        hash = hash_logits(hash, logits);
        token = match prompt.get(pos + 1) {
            Some(&token) => token,
            None => sampler.sample(logits, &mut scratch)?,
        };
        here.push(token);
    }
    if statistics.ended && here.last() == Some(&BOS) {
        here.pop();
    }
    let whole = statistics.ended || statistics.positions as usize == max_seq || stopped();
    if here != tokens || hash != statistics.logits_hash || !whole {
        bail!(
            "the firmware computes something else than this machine: {} tokens with logits {:016x} there, {} with \
             {hash:016x} here",
            tokens.len(),
            statistics.logits_hash,
            here.len()
        );
    }
    Ok(writeln!(io::stderr(), "{} tokens and their logits are as on this machine", tokens.len())?)
}
