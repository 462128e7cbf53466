//! Notes and progress on standard error. `--quiet` turns them off.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use indicatif::{ProgressBar, ProgressStyle};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Turns notes and progress off; results, warnings and errors stay.
pub fn be_quiet() {
    QUIET.store(true, Relaxed);
}

/// Writes a line to standard error, unless `--quiet` was given.
pub fn note(line: impl Display) -> anyhow::Result<()> {
    if !QUIET.load(Relaxed) {
        writeln!(io::stderr(), "{line}")?;
    }
    Ok(())
}

/// A progress bar on a terminal.
pub fn progress(len: u64, template: &str) -> anyhow::Result<ProgressBar> {
    let bar = if QUIET.load(Relaxed) { ProgressBar::hidden() } else { ProgressBar::new(len) };
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}
