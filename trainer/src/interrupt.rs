//! Ctrl-C: the first one asks the training to save and stop, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// Exit status of a process that Ctrl-C ends.
pub const STATUS: i32 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C is only noted.
pub fn catch() -> anyhow::Result<()> {
    let note = || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(STATUS);
        }
    };
    ctrlc::set_handler(note).context("catching Ctrl-C")
}

/// Whether Ctrl-C was pressed.
pub fn happened() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
