//! Completion scripts and manual pages.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

/// Prints a completion script.
pub fn completions(mut command: Command, shell: Shell) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new(); // a vector accepts every write; generate() panics at an error
    clap_complete::generate(shell, &mut command, name, &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// Writes a page for the program and one for each of its commands.
pub fn man(command: Command, folder: &Path) -> anyhow::Result<()> {
    let in_folder = || format!("folder {}", folder.display());
    std::fs::create_dir_all(folder).with_context(in_folder)?;
    clap_mangen::generate_to(command, folder).with_context(in_folder)
}
