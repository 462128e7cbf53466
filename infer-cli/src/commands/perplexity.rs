//! Measures how well a model predicts a text.

use std::io::{self, Write};
use std::path::Path;

use infer_core::{Perplexity, nats};
use serde::Serialize;

use crate::args::{PerplexityArgs, WindowArgs};
use crate::note::progress;
use crate::session::{BATCH, ModelFiles, start_pool};
use crate::windows::{Cut, Reader, Windows};

/// The fields of the JSON object.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    cut: Cut,
    tokens: usize,
    bytes: usize,
    nats_per_token: f64,
    perplexity: f64,
    nats_per_byte: f64,
}

pub fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    let (model, text) = args.files();
    let args = &args.windows;
    let files = ModelFiles::open(model, args.tokenizer.as_deref())?;
    let report = measure(&files, text, args);
    files.warn_if_changed()?;
    let report = report?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    writeln!(out, "windows          {}", report.cut)?;
    writeln!(out, "predicted        {} tokens, {} bytes", report.tokens, report.bytes)?;
    writeln!(out, "nats per token   {:.7}", report.nats_per_token)?;
    writeln!(out, "perplexity       {:.5}", report.perplexity)?;
    writeln!(out, "nats per byte    {:.7}", report.nats_per_byte)?;
    Ok(())
}

fn measure(files: &ModelFiles, text: &Path, args: &WindowArgs) -> anyhow::Result<Report> {
    let config = *files.model()?.config();
    let tokenizer = files.tokenizer()?;
    let windows = Windows::new(args, &tokenizer, text, config.seq_len)?;
    let pool = start_pool(args.threads, &config, BATCH)?;
    let mut buffers = Reader::buffers(files, windows.cut, &pool, args.kv)?;
    let mut reader = Reader::new(files, &mut buffers, &pool)?;
    let progress = progress(windows.cut.windows as u64, "{bar:40} window {pos}/{len}, {msg}, {eta} left")?;
    let mut sum = Perplexity::default();
    for window in windows.iter() {
        reader.start_window()?;
        for batch in window {
            reader.read(&batch)?;
            for (row, target) in batch.targets() {
                let bytes = tokenizer.text_bytes(target);
                sum += Perplexity { nats: nats(reader.logits(row)?, target), tokens: 1, bytes };
            }
        }
        progress.set_message(format!("{:.4} nats per token", sum.per_token()));
        progress.inc(1);
    }
    progress.finish_and_clear();

    let Perplexity { tokens, bytes, .. } = sum;
    let (nats_per_token, nats_per_byte) = (sum.per_token(), sum.per_byte());
    Ok(Report { cut: windows.cut, tokens, bytes, nats_per_token, perplexity: sum.perplexity(), nats_per_byte })
}
