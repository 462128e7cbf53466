//! Model files in memory without reading them: the system loads pages when they are used.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

pub use memmap2::Mmap;

use crate::error::Error;
use crate::model::Model;

/// A memory-mapped model file.
///
/// The file must not be changed or cut while it is mapped: as with every memory-mapped file, reading a page that is gone
/// ends the process with SIGBUS. Replace a model by writing a new file and renaming it.
#[derive(Debug)]
pub struct MappedModel {
    map: Mmap,
}

/// Why a model file could not be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened or mapped.
    Io(io::Error),
    /// The file is no usable model.
    Format(Error),
}

impl MappedModel {
    /// Maps the file and checks it.
    ///
    /// # Errors
    /// [`OpenError::Io`] or [`OpenError::Format`].
    pub fn open(path: impl AsRef<Path>) -> Result<MappedModel, OpenError> {
        let mapped = MappedModel { map: map_file(path.as_ref()).map_err(OpenError::Io)? };
        mapped.model().map_err(OpenError::Format)?;
        Ok(mapped)
    }

    /// The model in the file.
    ///
    /// # Errors
    /// None unless the file was changed after [`MappedModel::open`].
    pub fn model(&self) -> Result<Model<'_>, Error> {
        Model::from_bytes(&self.map)
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Maps a file of any content for reading.
///
/// # Errors
/// The file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    // Asked before it is opened, which waits for a writer if the file is a pipe.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is read only; that nobody changes the file meanwhile is the documented duty of the user, which no
    // program can enforce.
    unsafe { Mmap::map(&file) }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Io(e) => e.fmt(f),
            OpenError::Format(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}
