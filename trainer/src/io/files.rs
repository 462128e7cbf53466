//! Writes files whole or not at all, even if the process is killed, and gives a folder one writer
//! at a time. Names of the files of a run.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};
use infer_core::{MappedModel, Mmap, OpenError, map_file};

use crate::report::output::note;

/// The tokenizer of a checkpoint, of shards, and of a model beside it.
pub const TOKENIZER: &str = "tokenizer.bin";
/// The same vocabulary for the `tokenizers` library, where train-vocab has made it.
pub const TOKENIZER_JSON: &str = "tokenizer.json";
/// The settings of a run, in its out_dir.
pub const SETTINGS: &str = "settings.toml";
/// Every line of a run's log as JSON, in its out_dir.
pub const METRICS: &str = "metrics.jsonl";
/// The loss curve of a run, in its out_dir.
pub const CURVE: &str = "loss.svg";

/// Writes a file under a temporary name in the same folder, syncs it to the disk and renames it.
///
/// # Errors
/// Names the file that could not be written; a file of this name that was there before stays.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let folder = folder_of(path);
        std::fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // readable for all, as other new files; tempfile makes them private
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut temporary = builder.tempfile_in(folder)?;
        _ = temporary.as_file().lock(); // the lock tells `remove_unfinished` that the file is in use
        let mut out = BufWriter::new(temporary.as_file_mut());
        write(&mut out)?;
        out.flush()?;
        drop(out);
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        Ok(sync_folder(folder)?)
    };
    attempt().with_context(|| format!("writing {}", path.display()))
}

/// Makes a folder under a temporary name beside its place, lets `write` put files into it, syncs
/// them to the disk and renames it. An empty folder may be in its place.
///
/// # Errors
/// Names the folder that could not be written.
pub fn write_folder(path: &Path, write: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let parent = folder_of(path);
        std::fs::create_dir_all(parent)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // readable for all, as other new folders; tempfile makes them private
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = builder.tempdir_in(parent)?;
        let in_use = File::open(temporary.path()); // fails on Windows, which opens no folders
        _ = in_use.as_ref().map(File::lock); // the lock tells `remove_unfinished` that the folder is in use
        write(temporary.path())?;
        for entry in std::fs::read_dir(temporary.path())? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_folder(temporary.path())?;
        std::fs::rename(temporary.path(), path)?;
        _ = temporary.keep(); // nothing to delete: the folder has been renamed
        Ok(sync_folder(parent)?)
    };
    attempt().with_context(|| format!("writing {}", path.display()))
}

/// Maps a file of numbers, such as a token shard.
///
/// # Errors
/// The file cannot be opened or mapped.
#[allow(unsafe_code)]
pub fn map(path: &Path) -> io::Result<Mmap> {
    // SAFETY: map_file requires that nobody changes the file while it is mapped. docs/TRAINING.md
    // tells users so. If somebody does, the program reads other numbers, and all bits are valid
    // numbers; if the file is cut, the signal handler that main() installs ends the program.
    unsafe { map_file(path) }
}

/// Maps a model file.
///
/// # Errors
/// The file cannot be opened or mapped, or is no model.
#[allow(unsafe_code)]
pub fn open_model(path: impl AsRef<Path>) -> Result<MappedModel, OpenError> {
    // SAFETY: MappedModel::open has the requirement of map_file; it is met as in map().
    unsafe { MappedModel::open(path) }
}

/// Prefix of the names of files and folders that are being written.
pub const UNFINISHED: &str = ".unfinished-";

/// Removes the unfinished files that a killed process left in a folder. A file that another process
/// is writing is locked and stays.
///
/// # Errors
/// The folder cannot be read, or a file cannot be removed.
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        if unfinished && !is_locked(&entry.path()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Makes a folder and locks it: this process is its only writer until it drops the returned file.
/// The system releases the lock when the process ends, killed or not.
///
/// # Errors
/// The folder cannot be written, or is locked. The message names the holder of the lock as `other`
/// and ends with `advice`.
pub fn lock(folder: &Path, other: &str, advice: &str) -> anyhow::Result<File> {
    let open = || {
        std::fs::create_dir_all(folder)?;
        File::create(folder.join(".lock"))
    };
    let lock = open().with_context(|| format!("folder {} cannot be written: {advice}", folder.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("folder {}: {other} is at work here: {advice}", folder.display()),
        // Some network file systems have no locks.
        Err(TryLockError::Error(e)) => note(format!("note: {}: no protection from {other}: {e}", folder.display())),
    }
    Ok(lock)
}

/// Removes a file, or a folder and everything in it.
///
/// # Errors
/// Something cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Syncs the names in a folder to the disk.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_removed_but_not_what_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let left = [".unfinished-file", ".unfinished-folder"].map(|name| folder.path().join(name));
        std::fs::write(&left[0], "half").unwrap();
        std::fs::create_dir(&left[1]).unwrap();
        write_whole(&folder.path().join("file"), |out| {
            remove_unfinished(folder.path())?;
            Ok(out.write_all(b"whole")?)
        })
        .unwrap();
        assert!(left.iter().all(|path| !path.exists()));
        assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"whole");
    }

    #[test]
    fn a_folder_has_one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path(), "another trainer", "name another --out-dir").unwrap();
        let error = lock(folder.path(), "another trainer", "name another --out-dir").unwrap_err().to_string();
        let path = folder.path().display().to_string();
        assert!(error.contains(&path) && error.contains("--out-dir"), "{error}");
        drop(first);
        lock(folder.path(), "another trainer", "").unwrap();
    }
}
