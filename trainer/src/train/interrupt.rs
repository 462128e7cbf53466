//! Catches signals: the first one asks the training to save and stop, the second one ends the
//! process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::report::output::note;

/// The signal that came last, if one came.
#[derive(Default)]
pub struct Interrupt {
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Catches signals from now on: Ctrl-C, the signal that `kill` and service managers send, and
    /// on Linux that of a terminal that is closed. One rank of several also catches SIGUSR1, which
    /// mpirun passes on without ending anything itself.
    ///
    /// # Errors
    /// The system refuses to let the process catch a signal.
    pub fn catch(is_rank: bool) -> anyhow::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let again = Arc::new(AtomicBool::new(false));
        let mut signals = vec![SIGINT, SIGTERM];
        #[cfg(target_os = "linux")]
        if !is_ignored(signal_hook::consts::SIGHUP) {
            signals.push(signal_hook::consts::SIGHUP);
        }
        #[cfg(unix)]
        if is_rank {
            signals.push(signal_hook::consts::SIGUSR1);
        }
        for signal in signals {
            flag::register_conditional_shutdown(signal, status(signal), again.clone())
                .and_then(|_| flag::register(signal, again.clone()))
                .and_then(|_| flag::register_usize(signal, interrupt.signal.clone(), signal as usize))
                .context("catching signals")?;
        }
        Ok(interrupt)
    }

    /// The exit status, as shells define it, of a process that a signal asks to stop; `None`
    /// without a signal.
    pub fn status(&self) -> Option<u8> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(status(signal as i32) as u8),
        }
    }

    /// Passes a result on, unless a signal has made it an error: then the process ends with the
    /// signal's exit status. Whoever returned the error has removed its unfinished files.
    ///
    /// # Errors
    /// The result's own.
    pub fn end<T>(&self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        match (&done, self.status()) {
            (Err(_), Some(status)) => {
                note("interrupted");
                std::process::exit(status.into())
            }
            _ => done,
        }
    }
}

fn status(signal: i32) -> i32 {
    128 + signal
}

/// Whether the process was started with this signal ignored, as `nohup` does it.
#[cfg(target_os = "linux")]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
