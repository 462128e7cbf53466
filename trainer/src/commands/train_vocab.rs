//! `trainer train-vocab`: learns a vocabulary from a corpus.

use std::path::PathBuf;

use anyhow::anyhow;

use crate::data::corpus;
use crate::data::separator::Separator;
use crate::data::vocab::{self, Vocabulary, Words};
use crate::report::output::note;

/// Learns a vocabulary from a corpus; writes tokenizer.bin and tokenizer.json
#[derive(clap::Args)]
pub struct Args {
    /// Files and folders with stories: .json, .jsonl, .ndjson, or plain text with a separator
    #[arg(value_name = "PATH", default_value = corpus::DEFAULT)]
    corpus: Vec<PathBuf>,
    /// Number of tokens
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// Folder for tokenizer.bin and tokenizer.json [default: data/tokN]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// What separates the stories of plain text; \n is a line end of any kind
    #[arg(long, value_name = "TEXT", default_value_t)]
    separator: Separator,
    /// Share of the text whose characters get a token; the rest is spelled in bytes
    #[arg(long, value_name = "SHARE", default_value_t = vocab::COVERAGE)]
    character_coverage: f64,
    /// Most text to learn from, in MB
    #[arg(long, value_name = "MB", default_value_t = vocab::MAX_MB)]
    max_mb: u64,
}

/// Runs `trainer train-vocab`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let out = args.out.clone().unwrap_or_else(|| corpus::default_folder(args.vocab_size));
    let words = Words::count(&args.corpus, &[], &args.separator, args.max_mb)?;
    let vocabulary = Vocabulary::train(&words.counts, Some(args.vocab_size), args.character_coverage)
        .map_err(|e| anyhow!("{e:#} (see --character-coverage too)"))?;
    vocabulary.check_folder(&out)?;
    vocabulary.write(&out)?;
    note(format!("{}: {}, from {}", out.display(), vocabulary.describe(), words.read));
    Ok(())
}
