//! Files that are there whole or not at all, whatever happens while they are written, and folders
//! with one writer.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};
use infer_core::{MappedModel, Mmap, OpenError, map_file};

use crate::report::output::note;

/// The tokenizer of a checkpoint, of shards, and of a model beside it.
pub const TOKENIZER: &str = "tokenizer.bin";
/// The settings of a run, in its out_dir.
pub const SETTINGS: &str = "settings.toml";
/// Every line of a run's log as JSON, in its out_dir.
pub const METRICS: &str = "metrics.jsonl";
/// The loss curve of a run, in its out_dir.
pub const CURVE: &str = "loss.svg";

/// Writes a file under a temporary name beside it, makes sure that it is on the disk, and renames
/// it.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let folder = folder_of(path);
        std::fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // as any new file, not only for its owner
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut temporary = builder.tempfile_in(folder)?;
        _ = temporary.as_file().lock(); // tells `remove_unfinished` that it is in use
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

/// Maps token shards.
#[allow(unsafe_code)]
pub fn map(path: &Path) -> io::Result<Mmap> {
    // SAFETY: docs/TRAINING.md tells users not to change files that a run reads. They are read as
    // numbers, for which all bits are valid, and a file that is cut ends the program: see main().
    unsafe { map_file(path) }
}

/// Maps a model file.
#[allow(unsafe_code)]
pub fn open_model(path: impl AsRef<Path>) -> Result<MappedModel, OpenError> {
    // SAFETY: as in map().
    unsafe { MappedModel::open(path) }
}

/// Start of the names of files and folders that are being written.
pub const UNFINISHED: &str = ".unfinished-";

/// Removes what a killed process left unfinished in a folder. A file that another process is
/// writing is locked, and stays.
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

/// Makes a folder, and this process its only writer for as long as it keeps what is returned. The
/// system gives the folder free when the process ends, killed or not. `other` says what holds it,
/// and `way` what to do then.
pub fn lock(folder: &Path, other: &str, way: &str) -> anyhow::Result<File> {
    let open = || {
        std::fs::create_dir_all(folder)?;
        File::create(folder.join(".lock"))
    };
    let lock = open().with_context(|| format!("folder {} cannot be written: {way}", folder.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("folder {}: {other} is at work here: {way}", folder.display()),
        // Some network file systems have no locks.
        Err(TryLockError::Error(e)) => note(format!("note: {}: no protection from {other}: {e}", folder.display())),
    }
    Ok(lock)
}

/// Removes a file, or a folder and everything in it.
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

/// Makes sure that the names in a folder are on the disk.
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
