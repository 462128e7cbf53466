//! Files that are there whole or not at all, whatever happens while they are written.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::{MappedModel, Mmap, OpenError, map_file};

/// Writes a file under a temporary name beside it, makes sure that it is on the disk, and renames it.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let folder = folder_of(path);
        std::fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // as any new file, not only for its owner
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut temporary = builder.tempfile_in(folder)?;
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
    // SAFETY: docs/TRAINING.md tells users not to change files that a run reads. They are read as numbers, for which all bits are
    // valid, and a file that is cut ends the program: see main().
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

/// Removes what a killed process left unfinished in a folder.
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            remove(&entry.path())?;
        }
    }
    Ok(())
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
