//! A file to import, read piece by piece: reading does not map it, so that no page of a large model
//! stays in this process, and no length is trusted that the file does not have.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Map, Value};

/// A file of tensors.
pub struct Input {
    file: File,
    /// Its path, for messages.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

impl Input {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> anyhow::Result<Input> {
        let open = || -> anyhow::Result<Input> {
            // Opening a pipe would wait for a writer.
            ensure!(path.metadata()?.is_file(), "it is not a regular file");
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            Ok(Input { file, path: path.to_path_buf(), len })
        };
        open().with_context(|| path.display().to_string())
    }

    /// Fills a buffer with the bytes from `offset` on.
    ///
    /// # Errors
    /// The file ends before, or cannot be read.
    pub fn read_exact(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }

    /// The `n` bytes from `offset` on.
    ///
    /// # Errors
    /// As [`read_exact`](Self::read_exact); no memory is taken for bytes that are not there.
    pub fn bytes(&self, offset: u64, n: u64) -> io::Result<Vec<u8>> {
        if offset.checked_add(n).is_none_or(|end| end > self.len) {
            let message = format!("bytes {offset} to {offset}+{n} are asked for, and the file has {}", self.len);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let mut buffer = vec![0; n as usize];
        self.read_exact(offset, &mut buffer)?;
        Ok(buffer)
    }

    /// A buffered reader from the beginning of the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn reader(&self) -> io::Result<impl BufRead + '_> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))?;
        Ok(io::BufReader::new(file))
    }
}

/// The contents of a file of at most `limit` bytes.
///
/// # Errors
/// Names a file that is missing, larger, or cannot be read.
pub fn read_small(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let input = Input::open(path)?;
    let (name, len) = (path.display(), input.len);
    ensure!(len <= limit, "{name} has {len} bytes: such files have at most {limit}");
    input.bytes(0, len).with_context(|| name.to_string())
}

/// The text of a chat template.
///
/// # Errors
/// As [`read_small`], or it is no UTF-8.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read_small(path, 1 << 20)?).with_context(|| format!("{}: it is no UTF-8", path.display()))
}

/// A JSON object of a file, whose values are asked for by name.
pub struct Fields {
    map: Map<String, Value>,
    /// The file, for messages.
    pub name: String,
}

impl Fields {
    /// Reads a file.
    ///
    /// # Errors
    /// The file is missing, is larger than 1 MB, or is no JSON object.
    pub fn read(path: &Path) -> anyhow::Result<Fields> {
        Fields::parse(&read_small(path, 1 << 20)?, path.display().to_string())
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// They are no JSON object.
    pub fn parse(bytes: &[u8], name: String) -> anyhow::Result<Fields> {
        let map = serde_json::from_slice(bytes).map_err(|e| anyhow!("{name} is no JSON object: {e}"))?;
        Ok(Fields { map, name })
    }

    /// An object inside of this one.
    ///
    /// # Errors
    /// The field is something else.
    pub fn object(&self, field: &str) -> anyhow::Result<Option<Fields>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map: map.clone(), name: format!("{}: {field}", self.name) })),
            Some(other) => Err(self.wrong(field, other, "an object")),
        }
    }

    /// A value that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// A size.
    ///
    /// # Errors
    /// The field is no whole number from 0 to 2^31 − 1.
    pub fn size(&self, field: &str) -> anyhow::Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        // Some files have 4096.0.
        let whole =
            value.as_u64().or_else(|| value.as_f64().filter(|x| *x >= 0.0 && x.fract() == 0.0).map(|x| x as u64));
        let size = whole.filter(|n| i32::try_from(*n).is_ok());
        size.map(|n| Some(n as usize)).ok_or_else(|| self.wrong(field, value, "a whole number from 0 to 2^31 − 1"))
    }

    /// A size that must be there.
    ///
    /// # Errors
    /// As [`size`](Self::size), or it is missing.
    pub fn needed_size(&self, field: &str) -> anyhow::Result<usize> {
        self.size(field)?.ok_or_else(|| anyhow!("{}: {field} is missing", self.name))
    }

    /// A number.
    ///
    /// # Errors
    /// The field is no number.
    pub fn number(&self, field: &str) -> anyhow::Result<Option<f32>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_f64().map(|x| Some(x as f32)).ok_or_else(|| self.wrong(field, value, "a number"))
    }

    /// A number that must be there.
    ///
    /// # Errors
    /// As [`number`](Self::number), or it is missing.
    pub fn needed_number(&self, field: &str) -> anyhow::Result<f32> {
        self.number(field)?.ok_or_else(|| anyhow!("{}: {field} is missing", self.name))
    }

    /// A text.
    ///
    /// # Errors
    /// The field is no text.
    pub fn text(&self, field: &str) -> anyhow::Result<Option<&str>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(field, value, "a text"))
    }

    /// Token ids: one number or a list of them.
    ///
    /// # Errors
    /// The field is something else.
    pub fn ids(&self, field: &str) -> anyhow::Result<Option<Vec<u32>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let one = std::slice::from_ref(value);
        let ids = value.as_array().map_or(one, Vec::as_slice).iter();
        let ids: Option<Vec<u32>> = ids.map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
        ids.map(Some).ok_or_else(|| self.wrong(field, value, "a token id or a list of them"))
    }

    fn wrong(&self, field: &str, value: &Value, what: &str) -> anyhow::Error {
        let mut value = value.to_string();
        if let Some((end, _)) = value.char_indices().nth(60) {
            value.truncate(end);
            value.push('…');
        }
        anyhow!("{}: {field} is {value}: it must be {what}", self.name)
    }
}
