//! One file per command: its arguments, and the function that hands them to the library. The
//! arguments of training are [`train::settings`](crate::train::settings).

pub mod download;
pub mod eval;
pub mod export;
pub mod import;
pub mod pretokenize;
pub mod sample;
pub mod shell;
pub mod train;
pub mod train_vocab;

// A comment on a command would replace the help text of its arguments.
#[allow(missing_docs)]
#[derive(clap::Subcommand)]
pub enum Command {
    Download(download::Args),
    TrainVocab(train_vocab::Args),
    Pretokenize(pretokenize::Args),
    Sample(sample::Args),
    Eval(eval::Args),
    Import(import::Args),
    Export(export::Args),
    Completions(shell::Completions),
    Man(shell::Man),
}

impl Command {
    /// Runs the command. `program` is the whole command line, for those that describe it.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self, program: clap::Command) -> anyhow::Result<()> {
        match self {
            Command::Download(args) => download::run(args),
            Command::TrainVocab(args) => train_vocab::run(args),
            Command::Pretokenize(args) => pretokenize::run(args),
            Command::Sample(args) => sample::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Import(args) => import::run(args),
            Command::Export(args) => export::run(args),
            Command::Completions(args) => shell::completions(args, program),
            Command::Man(args) => shell::man(args, program),
        }
    }
}
