//! `trainer --export out/model.bin`: from text to a model file.
//!
//! ```text
//! stories ─ train-vocab ─> tokenizer.bin ─ pretokenize ─> token shards        corpus, vocab, split, pretokenize, shards
//! token shards ─ Batches ─> train ─> checkpoints ─ export ─> model.bin        data, batches, train, checkpoint, export
//! checkpoint or model.bin ─ sample, eval ─> stories, loss                     inference, sample, eval
//! ```

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use trainer::commands::{eval, sample, shell};
use trainer::data::{download, pretokenize, vocab};
use trainer::io::export;
use trainer::report::output::{self, Unread, Usage};
use trainer::train::run as train;
use trainer::train::settings::Settings;

/// Trains a small Llama-2 model and exports it as a llama2.c file
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Settings in TOML, under the names of the flags with underscores; flags override them
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Threads [default: one per CPU]
    #[arg(long, value_name = "N", global = true, alias = "workers", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    Download(download::Args),
    TrainVocab(vocab::Args),
    Pretokenize(pretokenize::Args),
    Sample(sample::Args),
    Eval(eval::Args),
    Export(export::Args),
    /// Print a script that completes this program's commands and flags in a shell
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one per command
    Man {
        /// Folder for them
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    infer_core::exit_when_a_map_is_cut();
    let matches = Cli::command().get_matches();
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is::<Unread>() => ExitCode::SUCCESS,
        Err(e) => {
            _ = writeln!(std::io::stderr(), "error: {}", output::one_line(&e));
            ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(matches: &clap::ArgMatches) -> anyhow::Result<()> {
    let cli = Cli::from_arg_matches(matches)?;
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
    }
    match cli.command {
        Some(Command::Download(args)) => download::run(&args),
        Some(Command::TrainVocab(args)) => vocab::run(&args),
        Some(Command::Pretokenize(args)) => pretokenize::run(&args),
        Some(Command::Sample(args)) => sample::run(&args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Export(args)) => export::run(&args),
        Some(Command::Completions { shell }) => shell::completions(Cli::command(), shell),
        Some(Command::Man { folder }) => shell::man(Cli::command(), &folder),
        None => train::run(&Settings::load(cli.config.as_deref(), cli.settings, matches)?),
    }
}
