//! How well a model predicts a text.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use infer_core::{BOS, Engine, Kernels, Limits, Runner, Tokenizer, classify, forward};

use crate::args::Kv;
use crate::session::{BATCH, Buffers, ModelFiles, Usage, encode, start_pool};
use crate::source;

/// What separates the stories of a text.
const SEPARATOR: &str = "<|endoftext|>";

pub fn run(
    files: &ModelFiles,
    path: &Path,
    window: Option<usize>,
    windows: Option<NonZeroUsize>,
    threads: Option<NonZeroUsize>,
    kv: Kv,
) -> anyhow::Result<()> {
    let model = files.model()?;
    let config = *model.config();
    let window = window.unwrap_or(config.seq_len);
    if window == 0 || window > config.seq_len {
        return Err(Usage(format!("--window {window}: give 1 to {}, the model's context", config.seq_len)).into());
    }
    let tokenizer = files.tokenizer()?;
    let tokenizer = tokenizer.get();
    let ids = read_stream(&tokenizer, path)?;
    let most = ids.len().saturating_sub(1) / window;
    let windows = windows.map_or(most, |n| n.get().min(most));
    if windows == 0 {
        let n = ids.len();
        return Err(Usage(format!(
            "text {} has {n} tokens, and one window takes {}: give a longer text or a smaller --window",
            path.display(),
            window + 1
        ))
        .into());
    }

    let pool = start_pool(threads)?;
    let engine = Engine { kernels: Kernels::detect(), runner: &pool };
    let mut buffers = Buffers::new(
        &config,
        Limits { max_seq: window, batch: BATCH.min(window), threads: pool.threads().get(), kv: kv.into() },
    )?;
    let mut state = buffers.state()?;
    let progress = ProgressBar::new(windows as u64);
    progress.set_style(ProgressStyle::with_template("{bar:40} window {pos}/{len}, {msg}, {eta} left")?);
    let (mut nats, mut bytes) = (0.0, 0);
    for k in 0..windows {
        let start = k * window;
        for (i, tokens) in ids[start..start + window].chunks(BATCH).enumerate() {
            let pos = i * BATCH;
            forward(&model, &mut state, &engine, tokens, pos)?;
            for row in 0..tokens.len() {
                let next = ids[start + pos + row + 1];
                let logits =
                    classify(&model, &mut state, &engine, row).with_context(|| files.model_name().to_owned())?;
                nats += surprise(logits, next);
                bytes += if next == BOS { 0 } else { tokenizer.decode(0, next)?.len() };
            }
        }
        progress.set_message(format!("{:.4} nats per token", nats / ((k + 1) * window) as f64));
        progress.inc(1);
    }
    progress.finish_and_clear();

    let predicted = windows * window;
    let per_token = nats / predicted as f64;
    let mut out = io::stdout().lock();
    writeln!(out, "windows          {windows} of {window} tokens")?;
    writeln!(out, "predicted        {predicted} tokens, {bytes} bytes")?;
    writeln!(out, "nats per token   {per_token:.7}")?;
    writeln!(out, "perplexity       {:.5}", per_token.exp())?;
    writeln!(out, "nats per byte    {:.7}", nats / bytes as f64)?;
    Ok(())
}

/// All stories of a text, each with BOS in front.
fn read_stream(tokenizer: &Tokenizer<'_>, path: &Path) -> anyhow::Result<Vec<u32>> {
    let in_file = || format!("text {}", path.display());
    let bytes = source::read(path).with_context(in_file)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|e| anyhow::anyhow!("not valid UTF-8 from byte {} on: convert it to UTF-8", e.valid_up_to()))
        .with_context(in_file)?;
    let mut ids = Vec::new();
    for story in text.split(SEPARATOR).map(str::trim).filter(|story| !story.is_empty()) {
        ids.extend(encode(tokenizer, story)?);
    }
    Ok(ids)
}

/// -ln of the probability that softmax gives to `token`.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}
