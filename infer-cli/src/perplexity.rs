//! How well a model predicts a text.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::{BOS, Engine, Kernels, Limits, Runner, Tokenizer, classify, forward};
use serde::Serialize;

use crate::args::PerplexityArgs;
use crate::input::read_text;
use crate::note::progress;
use crate::session::{BATCH, Buffers, ModelFiles, Usage, encode, start_pool};

/// What separates the stories of a text.
const SEPARATOR: &str = "<|endoftext|>";

/// The fields of the JSON object.
#[derive(Serialize)]
struct Report {
    windows: usize,
    window: usize,
    tokens: usize,
    bytes: usize,
    nats_per_token: f64,
    perplexity: f64,
    nats_per_byte: f64,
}

pub fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    let (model, text) = args.files();
    let files = ModelFiles::open(model, args.tokenizer.as_deref())?;
    let report = measure(&files, text, args);
    files.warn_if_changed()?;
    let report = report?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    writeln!(out, "windows          {} of {} tokens", report.windows, report.window)?;
    writeln!(out, "predicted        {} tokens, {} bytes", report.tokens, report.bytes)?;
    writeln!(out, "nats per token   {:.7}", report.nats_per_token)?;
    writeln!(out, "perplexity       {:.5}", report.perplexity)?;
    writeln!(out, "nats per byte    {:.7}", report.nats_per_byte)?;
    Ok(())
}

fn measure(files: &ModelFiles, text: &Path, args: &PerplexityArgs) -> anyhow::Result<Report> {
    let model = files.model()?;
    let config = *model.config();
    let window = args.window.unwrap_or(config.seq_len);
    if window == 0 || window > config.seq_len {
        return Err(Usage(format!("--window {window}: give 1 to {}, the model's context", config.seq_len)).into());
    }
    let tokenizer = files.tokenizer()?;
    let tokenizer = tokenizer.get();
    let ids = read_stream(&tokenizer, text)?;
    let most = ids.len().saturating_sub(1) / window;
    let windows = args.windows.map_or(most, |n| n.get().min(most));
    if windows == 0 {
        let n = ids.len();
        return Err(Usage(format!(
            "text {} has {n} tokens, and one window takes {}: give a longer text or a smaller --window",
            text.display(),
            window + 1
        ))
        .into());
    }

    let pool = start_pool(args.threads, &config, BATCH)?;
    let engine = Engine::new(Kernels::detect(), &pool);
    let mut buffers = Buffers::new(
        &config,
        Limits { max_seq: window, batch: BATCH.min(window), threads: pool.threads().get(), kv: args.kv.into() },
    )?;
    let mut state = buffers.state()?;
    let progress = progress(windows as u64, "{bar:40} window {pos}/{len}, {msg}, {eta} left")?;
    let (mut nats, mut bytes) = (0.0, 0);
    for k in 0..windows {
        let start = k * window;
        state.rewind(0)?;
        for tokens in ids[start..start + window].chunks(BATCH) {
            let pos = state.filled();
            forward(&model, &mut state, &engine, tokens)?;
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

    let tokens = windows * window;
    let nats_per_token = nats / tokens as f64;
    let (perplexity, nats_per_byte) = (nats_per_token.exp(), nats / bytes as f64);
    Ok(Report { windows, window, tokens, bytes, nats_per_token, perplexity, nats_per_byte })
}

/// All stories of a text, each with BOS in front.
fn read_stream(tokenizer: &Tokenizer<'_>, path: &Path) -> anyhow::Result<Vec<u32>> {
    let text = read_text(path)?;
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
