//! `trainer pretokenize`: turns a corpus into token shards.

use std::num::NonZeroU64;
use std::path::PathBuf;

use anyhow::{anyhow, bail};

use crate::data::corpus;
use crate::data::pretokenize::{self, Input};
use crate::data::separator::Separator;
use crate::data::tokenizer::TokenizerFile;
use crate::io::files::TOKENIZER;

/// Turns a corpus into token shards; goes on where it was stopped
#[derive(clap::Args)]
pub struct Args {
    /// Files and folders with stories: .json, .jsonl, .ndjson, or plain text with a separator
    /// [default: what the shards in the folder are made from, else data/TinyStories_all_data]
    #[arg(value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Stories to validate on [default: files that are named so, the first of several .json files,
    /// or one story in twenty]
    #[arg(long, value_name = "PATH")]
    valid: Vec<PathBuf>,
    /// Size of the vocabulary, to find its folder
    #[arg(long, value_name = "N", required_unless_present = "out")]
    vocab_size: Option<usize>,
    /// Folder for the shards [default: data/tokN]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The vocabulary [default: tokenizer.bin in the folder]
    #[arg(long, value_name = "TOKENIZER.bin")]
    tokenizer: Option<PathBuf>,
    /// What separates the stories of plain text; \n is a line end of any kind [default:
    /// <|endoftext|>]
    #[arg(long, value_name = "TEXT")]
    separator: Option<Separator>,
    /// Most text per shard, in MB; a .json file is not divided
    #[arg(long, value_name = "MB", default_value_t = pretokenize::SHARD_MB)]
    shard_mb: NonZeroU64,
}

/// Runs `trainer pretokenize`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let out = args.out.clone().unwrap_or_else(|| corpus::default_folder(args.vocab_size.unwrap_or_default()));
    let tokenizer = TokenizerFile::open(&args.tokenizer.clone().unwrap_or_else(|| out.join(TOKENIZER)))
        .map_err(|e| anyhow!("{e:#}: make one with `trainer train-vocab`, or give --tokenizer"))?;
    let vocab_size = tokenizer.vocab_size();
    if let Some(wanted) = args.vocab_size.filter(|&wanted| wanted != vocab_size) {
        bail!(
            "the tokenizer {} has {vocab_size} tokens, but the vocabulary is to have {wanted}: give another --tokenizer, or \
             --vocab-size {vocab_size}",
            tokenizer.path.display()
        );
    }
    let input = Input {
        corpus: &args.corpus,
        valid: &args.valid,
        separator: args.separator.as_ref(),
        shard_bytes: args.shard_mb.get().saturating_mul(1 << 20),
    };
    pretokenize::run(&input, tokenizer, &out)
}
