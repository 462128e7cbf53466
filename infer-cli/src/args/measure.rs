//! The command lines of what reads a whole text: perplexity and compare.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::Kv;
use super::values::{at_least_1, threads, tokens};

#[derive(clap::Args, Debug)]
pub struct PerplexityArgs {
    /// Model file, if a text follows [default: the embedded model]; else the text
    #[arg(value_name = "MODEL.bin|TEXT")] // two names for one place, so that flags may stand anywhere
    first: PathBuf,
    /// Text file, or - for standard input; stories are split at <|endoftext|>
    #[arg(value_name = "TEXT")]
    second: Option<PathBuf>,
    #[command(flatten)]
    pub windows: WindowArgs,
}

impl PerplexityArgs {
    /// The model, if one is given, and the text.
    pub fn files(&self) -> (Option<&Path>, &Path) {
        match &self.second {
            Some(text) => (Some(&self.first), text),
            None => (None, &self.first),
        }
    }
}

#[derive(clap::Args, Debug)]
pub struct CompareArgs {
    /// Model file whose predictions are the reference, such as the f32 model
    #[arg(value_name = "A.bin")]
    pub a: PathBuf,
    /// Model file of the same vocabulary, such as the int8 model
    #[arg(value_name = "B.bin")]
    pub b: PathBuf,
    /// Text file, or - for standard input; stories are split at <|endoftext|>
    #[arg(value_name = "TEXT")]
    pub text: PathBuf,
    #[command(flatten)]
    pub windows: WindowArgs,
}

/// How a text is read.
#[derive(clap::Args, Debug)]
pub struct WindowArgs {
    /// Tokenizer file [default: tokenizer.bin beside the model or in this folder]
    #[arg(short = 'z', long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens per window, each read from an empty context [default: the model's seq_len]
    #[arg(long, value_name = "N", value_parser = tokens, allow_hyphen_values = true)]
    pub window: Option<usize>,
    /// Tokens from one window to the next: below the window's size windows overlap, and each token
    /// behind the first window is predicted from at least the difference [default: the window's
    /// size]
    #[arg(long, value_name = "N", value_parser = tokens, allow_hyphen_values = true)]
    pub stride: Option<usize>,
    /// Read only so many windows
    #[arg(long, value_name = "N", value_parser = at_least_1, allow_hyphen_values = true)]
    pub windows: Option<NonZeroUsize>,
    /// Threads [default: the physical cores, fewer for a small model]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f32")]
    pub kv: Kv,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
