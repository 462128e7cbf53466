//! The header of a GGUF file: its fields and the places of its tensors.
//!
//! candle's reader keeps 32 bytes for each number of a list, divides by an alignment of 0 and takes
//! the last of two tensors of one name; so the header is read here. Every count is checked against
//! the bytes that are left before anything is kept.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use anyhow::{Context, anyhow, bail, ensure};

use crate::io::import::file::Input;
use crate::io::import::tensors::{Stored, Table, ggml_type, shown};

/// First four bytes of a file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// Longest header, in bytes: vocabularies of 256,000 tokens take 10 MB.
const MAX_HEADER: u64 = 32 << 20;
/// Longest list that is kept.
const MAX_LIST: u64 = 1 << 20;
/// Most fields, and most tensors.
const MAX_COUNT: u64 = 1 << 16;

/// The lists that are kept: short elements take more memory than they have bytes in the file.
pub const TOKENS: &str = "tokenizer.ggml.tokens";
pub const SCORES: &str = "tokenizer.ggml.scores";
pub const TYPES: &str = "tokenizer.ggml.token_type";
pub const MERGES: &str = "tokenizer.ggml.merges";
/// The rotary tables of a model file of version 0: `trainer export` has these keys of its own.
pub const FREQ_CIS_REAL: &str = "llama2c.freq_cis_real";
pub const FREQ_CIS_IMAG: &str = "llama2c.freq_cis_imag";
const KEPT: [&str; 6] = [TOKENS, SCORES, TYPES, MERGES, FREQ_CIS_REAL, FREQ_CIS_IMAG];

/// A field of the header.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    Int(i64),
    Float(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    /// A list of another type, by GGUF's number of it, and not its elements.
    ListOfType(u32),
}

/// The fields of a file by name.
pub struct Header {
    fields: HashMap<String, Field>,
}

impl Header {
    /// The field of this name.
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    /// A size.
    ///
    /// # Errors
    /// The field is no whole number from 0 to 2^31 − 1.
    pub fn size(&self, name: &str) -> anyhow::Result<Option<usize>> {
        match self.get(name) {
            None => Ok(None),
            Some(&Field::Int(n)) if (0..=i64::from(i32::MAX)).contains(&n) => Ok(Some(n as usize)),
            Some(other) => Err(wrong(name, other, "a whole number from 0 to 2^31 − 1")),
        }
    }

    /// A size that must be there.
    ///
    /// # Errors
    /// As [`size`](Self::size), or it is missing.
    pub fn needed_size(&self, name: &str) -> anyhow::Result<usize> {
        self.size(name)?.with_context(|| format!("{name} is missing"))
    }

    /// A number.
    ///
    /// # Errors
    /// The field is no number.
    pub fn number(&self, name: &str) -> anyhow::Result<Option<f32>> {
        match self.get(name) {
            None => Ok(None),
            Some(Field::Float(x)) => Ok(Some(*x)),
            Some(other) => Err(wrong(name, other, "a number")),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// The field is no text.
    pub fn text(&self, name: &str) -> anyhow::Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Field::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, other, "a text")),
        }
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// The field is something else.
    pub fn floats(&self, name: &str) -> anyhow::Result<Option<&[f32]>> {
        match self.get(name) {
            None => Ok(None),
            Some(Field::Floats(values)) => Ok(Some(values)),
            Some(other) => Err(wrong(name, other, "a list of f32")),
        }
    }

    /// A list of texts.
    pub fn texts(&self, name: &str) -> Option<&[String]> {
        match self.get(name) {
            Some(Field::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    /// Yes or no.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name) {
            Some(Field::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }
}

fn wrong(name: &str, value: &Field, what: &str) -> anyhow::Error {
    anyhow!("{name} is {}: it must be {what}", shown(&format!("{value:?}")))
}

/// Reads the header of a file.
///
/// # Errors
/// It is damaged, or of another version than 1 to 3.
pub fn read(file: Input) -> anyhow::Result<(Header, Table)> {
    let mut reader = Reader { left: file.len.min(MAX_HEADER), done: 0, wide: true, input: Box::new(file.reader()?) };
    let (fields, tensors) = reader.header()?;
    let done = reader.done;
    drop(reader);
    let header = Header { fields };
    let alignment = header.size("general.alignment")?.unwrap_or(32) as u64;
    ensure!(
        alignment.is_power_of_two() && alignment <= 1 << 16,
        "general.alignment is {alignment}: it must be a power of two"
    );
    let start = done.next_multiple_of(alignment);
    let mut table = Table::new(vec![file]);
    for (name, mut tensor) in tensors {
        let offset = tensor.offset;
        tensor.offset =
            start.checked_add(offset).with_context(|| format!("tensor {}: its offset is {offset}", shown(&name)))?;
        table.insert(&name, tensor)?;
    }
    Ok((header, table))
}

type Parts = (HashMap<String, Field>, Vec<(String, Stored)>);

/// Reads a header from the front.
struct Reader<'f> {
    input: Box<dyn BufRead + 'f>,
    /// Bytes that are left of the file, or of the longest header.
    left: u64,
    /// Bytes that were read.
    done: u64,
    /// Lengths have 64 bits, as they do since version 2.
    wide: bool,
}

impl Reader<'_> {
    fn header(&mut self) -> anyhow::Result<Parts> {
        ensure!(self.array()? == *MAGIC, "it is no GGUF file");
        let version = self.u32()?;
        ensure!((1..=3).contains(&version), "GGUF version {version} is unknown: 1, 2 and 3 can be read");
        self.wide = version > 1;
        let (n_tensors, n_fields) = (self.length()?, self.length()?);
        for (count, what) in [(n_tensors, "tensors"), (n_fields, "fields")] {
            ensure!(count <= MAX_COUNT, "its header speaks of {count} {what}: at most {MAX_COUNT} are read");
        }
        let mut fields = HashMap::new();
        for _ in 0..n_fields {
            let name = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind, KEPT.contains(&&*name)).with_context(|| format!("field {}", shown(&name)))?;
            ensure!(!fields.contains_key(&name), "field {} is there twice", shown(&name));
            fields.extend(value.map(|value| (name, value)));
        }
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            let name = self.text()?;
            let tensor = self.tensor().with_context(|| format!("tensor {}", shown(&name)))?;
            tensors.push((name, tensor));
        }
        Ok((fields, tensors))
    }

    fn tensor(&mut self) -> anyhow::Result<Stored> {
        let n = self.u32()?;
        ensure!(n <= 4, "it has {n} dimensions: 4 are the most");
        let mut shape = (0..n).map(|_| self.length()).collect::<anyhow::Result<Vec<u64>>>()?;
        shape.reverse(); // inputs come first here
        let stored_as = ggml_type(self.u32()?)?;
        let offset = u64::from_le_bytes(self.array()?);
        Ok(Stored { file: 0, offset, shape, stored_as })
    }

    /// Reads a value; `None` for a list that is not kept.
    fn value(&mut self, kind: u32, keep: bool) -> anyhow::Result<Option<Field>> {
        Ok(Some(match kind {
            0 => Field::Int(u8::from_le_bytes(self.array()?).into()),
            1 => Field::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Field::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Field::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Field::Int(self.u32()?.into()),
            5 => Field::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Field::Float(f32::from_le_bytes(self.array()?)),
            7 => Field::Bool(self.array()? != [0]),
            8 => Field::Text(self.text()?),
            9 => return self.list(keep, 0),
            // Larger ones are no sizes that can be used.
            10 => Field::Int(u64::from_le_bytes(self.array()?).min(i64::MAX as u64) as i64),
            11 => Field::Int(i64::from_le_bytes(self.array()?)),
            12 => Field::Float(f64::from_le_bytes(self.array()?) as f32),
            kind => bail!("type {kind} is unknown"),
        }))
    }

    fn list(&mut self, keep: bool, depth: usize) -> anyhow::Result<Option<Field>> {
        ensure!(depth < 4, "lists lie too deep in each other");
        let (kind, n) = (self.u32()?, self.length()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 => self.length_size(),
            9 => 4 + self.length_size(),
            10..=12 => 8,
            kind => bail!("a list of type {kind}, which is unknown"),
        };
        let least = n.saturating_mul(size);
        ensure!(least <= self.left, "a list of {n} takes {least} bytes, and {} are left", self.left);
        ensure!(!keep || n <= MAX_LIST, "a list of {n}: at most {MAX_LIST} are read");
        Ok(match (kind, keep) {
            (8, true) => Some(Field::Texts(self.repeat(n, Reader::text)?)),
            (6, true) => Some(Field::Floats(self.repeat(n, |r| Ok(f32::from_le_bytes(r.array()?)))?)),
            (5, true) => Some(Field::Ints(self.repeat(n, |r| Ok(i32::from_le_bytes(r.array()?)))?)),
            (8 | 9, _) => {
                for _ in 0..n {
                    if kind == 8 { _ = self.text()? } else { _ = self.list(false, depth + 1)? }
                }
                keep.then_some(Field::ListOfType(kind))
            }
            _ => {
                self.skip(least)?;
                keep.then_some(Field::ListOfType(kind))
            }
        })
    }

    fn repeat<T>(&mut self, n: u64, read: impl Fn(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
        (0..n).map(|_| read(self)).collect()
    }

    fn length_size(&self) -> u64 {
        if self.wide { 8 } else { 4 }
    }

    fn length(&mut self) -> anyhow::Result<u64> {
        if self.wide { Ok(u64::from_le_bytes(self.array()?)) } else { Ok(self.u32()?.into()) }
    }

    fn u32(&mut self) -> anyhow::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a text. Some files have zero bytes at its end, and some are no UTF-8.
    fn text(&mut self) -> anyhow::Result<String> {
        let n = self.length()?;
        self.claim(n)?;
        let mut bytes = vec![0; n as usize];
        self.input.read_exact(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.trim_end_matches('\0').into())
    }

    fn skip(&mut self, n: u64) -> anyhow::Result<()> {
        self.claim(n)?;
        let skipped = std::io::copy(&mut (&mut self.input).take(n), &mut std::io::sink())?;
        ensure!(skipped == n, "it is cut short");
        Ok(())
    }

    /// Counts bytes that are about to be read.
    fn claim(&mut self, n: u64) -> anyhow::Result<()> {
        let left = self.left.checked_sub(n);
        self.left = left.with_context(|| {
            format!(
                "its header asks for {n} bytes, and {} are left: it is cut short, damaged or above 32 MB",
                self.left
            )
        })?;
        self.done += n;
        Ok(())
    }
}
