//! `trainer download`: fetches stories, models and tokenizers that others have published.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use crate::data::download::{Source, download};
use crate::data::published::{self, Item};
use crate::report::output::Usage;

/// Downloads stories, models and tokenizers; goes on where it was stopped
#[derive(clap::Args)]
#[allow(rustdoc::bare_urls)] // the help prints them as they are
pub struct Args {
    /// What to fetch
    #[arg(value_name = "NAME", default_value = "tinystories")]
    names: Vec<Name>,
    /// Folder to put it in
    #[arg(long, value_name = "FOLDER", default_value = "data")]
    out: PathBuf,
    /// Address of a mirror, in place of https://huggingface.co and
    /// https://raw.githubusercontent.com
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// SHA-256 to expect in place of the known one, when a mirror has another edition of a single
    /// file
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Seconds without a byte after which a connection counts as broken
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    timeout: NonZeroU64,
}

/// What can be fetched by name.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Name {
    /// TinyStories as JSON shards, 1.6 GB packed
    Tinystories,
    /// A model of 260 thousand parameters and its tokenizer
    #[value(name = "stories260K")]
    Stories260K,
    /// A model of 15 million parameters and its tokenizer
    #[value(name = "stories15M")]
    Stories15M,
    /// A model of 42 million parameters and its tokenizer
    #[value(name = "stories42M")]
    Stories42M,
    /// A model of 110 million parameters and its tokenizer
    #[value(name = "stories110M")]
    Stories110M,
    /// Llama 2's tokenizer in the format of llama2.c
    Tokenizer,
}

impl Name {
    fn items(self) -> &'static [Item] {
        match self {
            Name::Tinystories => published::TINYSTORIES,
            Name::Stories260K => published::STORIES260K,
            Name::Stories15M => published::STORIES15M,
            Name::Stories42M => published::STORIES42M,
            Name::Stories110M => published::STORIES110M,
            Name::Tokenizer => published::TOKENIZER,
        }
    }
}

/// Runs `trainer download`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let items: Vec<Item> = args.names.iter().flat_map(|name| name.items()).copied().collect();
    if args.sha256.is_some() && items.len() > 1 {
        return Err(Usage(format!("--sha256 is for a single file, and these are {}", items.len())).into());
    }
    let source = Source {
        out: &args.out,
        base_url: args.base_url.as_deref(),
        sha256: args.sha256.as_deref(),
        timeout: Duration::from_secs(args.timeout.get()),
    };
    download(&items, &source)
}
