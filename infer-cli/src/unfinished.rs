//! Files that are being written, which Ctrl-C must not leave behind.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers a file until the value is dropped.
#[must_use]
pub fn remember(path: &Path) -> Unfinished {
    unfinished().push(path.into());
    Unfinished(path.into())
}

/// A file that is being written.
pub struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        unfinished().retain(|path| *path != self.0);
    }
}

/// Removes them, when the program ends early. Until it does, no other file is begun.
pub fn remove_all() {
    let mut files = unfinished();
    for path in files.drain(..) {
        let _ = std::fs::remove_file(path); // the program ends: nowhere to report to
    }
    std::mem::forget(files);
}
