//! Parses the command line of `trainer` and hands over to the command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use trainer::commands::{Command, train};
use trainer::report::output::exit_code;
use trainer::train::group;
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
    /// Print what the training will take (parameters, memory, operations, time), and end
    #[arg(long)]
    plan: bool,
    /// Threads [default: one per CPU, which the processes of a machine share]
    #[arg(long, value_name = "N", global = true, alias = "workers", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    infer_core::exit_when_a_map_is_cut();
    exit_code(run(&Cli::command().get_matches()))
}

fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let cli = Cli::from_arg_matches(matches)?;
    if let Some(threads) = cli.threads.map(usize::from).or_else(group::threads) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    match cli.command {
        Some(command) => command.run(Cli::command()),
        None => train::run(cli.config.as_deref(), cli.settings, cli.plan, matches),
    }
}
