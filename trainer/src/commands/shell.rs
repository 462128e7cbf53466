//! `trainer completions` and `trainer man`: describe the command line to a shell and to `man`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

use crate::report::output::print;

/// Print a script that completes this program's commands and flags in a shell
#[derive(clap::Args)]
pub struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

/// Write manual pages, one per command
#[derive(clap::Args)]
pub struct Man {
    /// Folder for them
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints a completion script of the program.
pub fn completions(args: &Completions, mut program: Command) -> anyhow::Result<()> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new(); // generate() panics when a write fails; a Vec takes every write
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    print(&script)
}

/// Writes a manual page of the program and one of each command.
pub fn man(args: &Man, program: Command) -> anyhow::Result<()> {
    let in_folder = || format!("folder {}", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(in_folder)?;
    clap_mangen::generate_to(program, &args.folder).with_context(in_folder)
}
