//! Measures how well a model predicts a text.

use std::io::{self, Write};
use std::path::Path;

use infer_core::{Engine, Kernels, Limits, OwnedTokenizer, Perplexity};
use serde::Serialize;

use crate::args::PerplexityArgs;
use crate::input::read_text;
use crate::note::progress;
use crate::session::{BATCH, ModelFiles, Usage, buffers, start_pool};

/// Separates the stories of a text.
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
    let mut buffers = buffers(
        &config,
        Limits::new(window).with_batch(BATCH.min(window)).with_threads(pool.threads().get()).with_kv(args.kv.into()),
    )?;
    let mut state = buffers.state()?;
    let progress = progress(windows as u64, "{bar:40} window {pos}/{len}, {msg}, {eta} left")?;
    let mut sum = Perplexity::default();
    for start in (0..windows * window).step_by(window) {
        let (tokens, targets) = (&ids[start..start + window], &ids[start + 1..=start + window]);
        sum.add_window(&model, &mut state, &engine, &tokenizer.get(), tokens, targets).map_err(|e| files.explain(e))?;
        progress.set_message(format!("{:.4} nats per token", sum.per_token()));
        progress.inc(1);
    }
    progress.finish_and_clear();

    let Perplexity { tokens, bytes, .. } = sum;
    let (nats_per_token, nats_per_byte) = (sum.per_token(), sum.per_byte());
    Ok(Report { windows, window, tokens, bytes, nats_per_token, perplexity: sum.perplexity(), nats_per_byte })
}

/// Reads the tokens of all stories of a text, each with BOS in front.
fn read_stream(tokenizer: &OwnedTokenizer<&[u8]>, path: &Path) -> anyhow::Result<Vec<u32>> {
    let text = read_text(path)?;
    let mut ids = Vec::new();
    for story in text.split(SEPARATOR).map(str::trim).filter(|story| !story.is_empty()) {
        ids.extend(tokenizer.encode(story)?);
    }
    Ok(ids)
}
