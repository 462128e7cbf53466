//! `trainer eval`: measures with infer-core how well a checkpoint or a model file predicts the
//! validation split.

use std::path::PathBuf;

use infer_core::Perplexity;

use crate::data::corpus;
use crate::io::inference::Runnable;
use crate::report::output::{Usage, result};
use crate::train::evaluate::{evaluate, open_shards};
use crate::train::sources::data_of_run;

/// Loss of a checkpoint or a model file on the validation split
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint, out_dir of a run (for its best checkpoint), or model.bin
    model: PathBuf,
    /// Folder of token shards [default: those of the run, or data/tokN for a model file of N
    /// tokens]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Tokens per sequence [default: the model's context]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Tokenizer of a model file [default: tokenizer.bin beside it]
    #[arg(long, value_name = "tokenizer.bin")]
    tokenizer: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The fields of the JSON object, as `infer-cli perplexity --json` has them.
#[derive(serde::Serialize)]
struct Report {
    windows: usize,
    window: usize,
    tokens: usize,
    bytes: usize,
    nats_per_token: f64,
    perplexity: f64,
    nats_per_byte: f64,
}

/// Runs `trainer eval`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runnable = Runnable::open(&args.model, args.tokenizer.as_deref())?;
    let config = *runnable.model()?.config();
    let data = match &args.data {
        Some(folder) => folder.clone(),
        None => data_of_run(&args.model)?.unwrap_or_else(|| corpus::default_folder(config.vocab_size)),
    };
    let shards = open_shards(&runnable, &args.model, &data)?;
    let window = args.window.unwrap_or(config.seq_len);
    if !(1..=config.seq_len).contains(&window) {
        return Err(Usage(format!("--window {window}: give 1 to {}, the model's context", config.seq_len)).into());
    }
    let (windows, all) = evaluate(&runnable, &shards, window)?;
    let Perplexity { tokens, bytes, .. } = all;
    let (nats_per_token, perplexity, nats_per_byte) = (all.per_token(), all.perplexity(), all.per_byte());
    if args.json {
        let report = Report { windows, window, tokens, bytes, nats_per_token, perplexity, nats_per_byte };
        result(serde_json::to_string(&report)?)
    } else {
        result(format!("predicted        {tokens} tokens, {bytes} bytes"))?;
        result(format!("nats per token   {nats_per_token:.7}"))?;
        result(format!("perplexity       {perplexity:.4}"))?;
        result(format!("nats per byte    {nats_per_byte:.7}"))
    }
}
