//! The bytes of models and tokenizers: from files, or the default ones that are part of this
//! program.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use infer_core::format::Header;
use infer_core::{Aligned, Mmap, map_file};
use infer_text::TextTokenizer;

use crate::wrong_file;

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/model.bin")));
static TOKENIZER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tokenizer.bin"));

/// The bytes of a model or of a tokenizer.
pub struct Source {
    /// Its name in messages.
    pub name: String,
    bytes: Bytes,
}

enum Bytes {
    /// The file stays open, to find out at the end whether somebody wrote to it since `modified`.
    Mapped {
        map: Mmap,
        file: File,
        modified: Option<SystemTime>,
    },
    Read(Vec<u8>),
    Embedded(&'static [u8]),
}

impl Source {
    /// The model in this file, or the embedded one.
    pub fn model(path: Option<&Path>) -> anyhow::Result<Source> {
        match path {
            Some(path) => {
                let name = format!("model {}", path.display());
                let map = map(path).with_context(|| name.clone())?;
                if let Some(problem) = wrong_file::not_a_model(&map, path) {
                    bail!("{name}: {problem}");
                }
                let file = File::open(path).with_context(|| name.clone())?;
                let modified = modified(&file);
                Ok(Source { bytes: Bytes::Mapped { map, file, modified }, name })
            }
            None => Ok(Source { name: "the embedded default model".into(), bytes: Bytes::Embedded(&MODEL.0) }),
        }
    }

    /// The tokenizer in this file, or the embedded one.
    pub fn tokenizer(path: Option<&Path>) -> anyhow::Result<Source> {
        match path {
            Some(path) => {
                let name = format!("tokenizer {}", path.display());
                let bytes = read(path).with_context(|| name.clone())?;
                if let Some(problem) = wrong_file::not_a_tokenizer(&bytes, path) {
                    bail!("{name}: {problem}");
                }
                Ok(Source { name, bytes: Bytes::Read(bytes) })
            }
            None => Ok(Source { name: "the embedded tokenizer".into(), bytes: Bytes::Embedded(TOKENIZER) }),
        }
    }

    /// Reads it as the tokenizer of a model with this header: a tokenizer.bin or a tokenizer.json.
    pub fn text_tokenizer(&self, header: &Header) -> anyhow::Result<TextTokenizer> {
        if wrong_file::is_tokenizer_json(self) {
            return TextTokenizer::from_json(self, header)
                .with_context(|| format!("{}: {}", self.name, wrong_file::BAD_TOKENIZER_JSON));
        }
        TextTokenizer::from_bin(self.to_vec(), header).with_context(|| self.name.clone())
    }

    /// Reads it as a tokenizer of its own, with all its entries.
    pub fn whole_tokenizer(&self) -> anyhow::Result<TextTokenizer> {
        if wrong_file::is_tokenizer_json(self) {
            return TextTokenizer::whole_json(self)
                .with_context(|| format!("{}: {}", self.name, wrong_file::BAD_TOKENIZER_JSON));
        }
        TextTokenizer::whole_bin(self.to_vec()).with_context(|| self.name.clone())
    }

    /// Whether it is part of this program.
    pub fn is_embedded(&self) -> bool {
        matches!(self.bytes, Bytes::Embedded(_))
    }

    /// Whether somebody wrote to the mapped file since it was opened. Replacing it by another file
    /// changes nothing.
    pub fn was_changed(&self) -> bool {
        matches!(&self.bytes, Bytes::Mapped { file, modified: before, .. } if modified(file) != *before)
    }
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped { map, .. } => map,
            Bytes::Read(bytes) => bytes,
            Bytes::Embedded(bytes) => bytes,
        }
    }
}

fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|about| about.modified()).ok()
}

/// Maps a model file into memory.
#[allow(unsafe_code)]
pub fn map(path: &Path) -> io::Result<Mmap> {
    // SAFETY: README.md tells users not to change a model that is in use. Weights and headers are
    // read as numbers, for which all bits are valid. A file that is cut ends the program: with a
    // message on Linux, see main(), elsewhere by SIGBUS.
    unsafe { map_file(path) }
}

/// Reads a file whose text must not change.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // This comes before opening, which would wait for a writer if the file is a pipe.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    std::fs::read(path)
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
