//! `infer-cli` tells a story: see `infer-cli --help`.

mod args;
mod bandwidth;
mod commands;
mod input;
mod machine;
mod note;
mod session;
mod source;
mod stop;
mod text;
mod unfinished;
mod windows;
mod wrong_file;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;

use args::{Args, Command, Mode};
use commands::{bench, chat, compare, generate, inspect, perplexity, quantize, serial, shell, tokenize};
use session::{ModelFiles, Usage};

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let mut args = match args::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    infer_core::exit_when_a_map_is_cut();
    // The next shell prompt starts on a line of its own, and no half file stays behind.
    let _ = ctrlc::set_handler(|| {
        if serial::stop() || chat::stop() {
            return;
        }
        unfinished::remove_all();
        let _ = writeln!(io::stderr());
        std::process::exit(INTERRUPTED);
    });
    match run(&mut args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e:#}"); // nowhere else to report to
            ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(args: &mut Args) -> anyhow::Result<()> {
    if args.quiet {
        note::be_quiet();
    }
    match &args.command {
        Some(Command::Inspect { model, plan, c, json }) => return inspect::run(model.as_deref(), *plan, *c, *json),
        Some(Command::Quantize { input, output, tokenizer }) => {
            return quantize::run(input, output, tokenizer.as_deref());
        }
        Some(Command::Perplexity(args)) => return perplexity::run(args),
        Some(Command::Compare(args)) => return compare::run(args),
        Some(Command::Bench(args)) => return bench::run(args),
        Some(Command::Tokenize { tokenizer, text, special, json }) => {
            return tokenize::run(tokenizer.as_deref(), text.as_deref(), *special, *json);
        }
        Some(Command::Serial(args)) => return serial::run(args),
        Some(Command::Completions { shell }) => return shell::completions(Args::command(), *shell),
        Some(Command::Man { folder }) => return shell::man(Args::command(), folder),
        None => {}
    }
    let files = ModelFiles::open(args.model.as_deref(), args.generate.tokenizer.as_deref())?;
    args.generate.read_prompt()?;
    let result = match args.generate.mode {
        Mode::Generate => {
            args.generate.check_story().map_err(Into::into).and_then(|()| generate::run(&files, &args.generate))
        }
        Mode::Chat => args.generate.check_chat().map_err(Into::into).and_then(|()| chat::run(&files, &args.generate)),
    };
    files.warn_if_changed()?;
    result
}

/// Whether the reader of standard output has gone, as with `infer-cli model.bin | head -1`.
fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
