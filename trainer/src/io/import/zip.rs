//! The archives that torch.save writes: ZIP files whose entries are stored as they are. Only their
//! directory is read here; nothing is ever inflated.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};

use crate::io::import::file::Input;
use crate::io::import::tensors::shown;

/// Most bytes of the directory: about 100,000 entries.
const MAX_DIRECTORY: u64 = 16 << 20;
/// Value of a 32-bit field whose 64-bit value is in the entry's extra field.
const IN_EXTRA: u32 = u32::MAX;

/// Where the contents of an entry lie in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Whether a file begins as such an archive.
pub fn is_zip(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// The entries of an archive by name.
///
/// # Errors
/// The directory is damaged, or an entry is compressed, encrypted or not whole in the file.
pub fn entries(file: &Input) -> anyhow::Result<HashMap<String, Entry>> {
    let (offset, size) = directory(file)?;
    ensure!(size <= MAX_DIRECTORY, "its directory has {size} bytes: at most {MAX_DIRECTORY} are read");
    let bytes = file.bytes(offset, size).context("its directory runs past its end")?;
    let mut entries = HashMap::new();
    let mut rest = Cursor(&bytes);
    while !rest.0.is_empty() {
        let (name, header, len) = rest.entry().context("its directory is damaged")?;
        let name = String::from_utf8_lossy(name).into_owned();
        let content = content(file, header, len).with_context(|| format!("entry {}", shown(&name)))?;
        ensure!(entries.insert(name.clone(), content).is_none(), "entry {} is there twice", shown(&name));
    }
    Ok(entries)
}

/// Offset and length of the directory: from the record at the end of the file, or from the 64-bit
/// one that stands before it.
fn directory(file: &Input) -> anyhow::Result<(u64, u64)> {
    const RECORD: u64 = 22;
    const LOCATOR: u64 = 20;
    let cut = "it has no directory at its end: it is cut short or no archive of PyTorch";
    let tail_len = file.len.min(RECORD + LOCATOR + 0xffff); // a comment stands behind the record
    let tail = file.bytes(file.len - tail_len, tail_len)?;
    let at = tail.windows(4).rposition(|window| window == b"PK\x05\x06").context(cut)?;
    let comment = tail.get(at + 20..).and_then(|bytes| Cursor(bytes).u16()).context(cut)?;
    ensure!(tail.len() - at == RECORD as usize + usize::from(comment), "{cut}");
    let mut record = Cursor(&tail[at + 4..]);
    record.take(8).context(cut)?; // numbers of disks and entries
    let (size, offset) = (record.u32().context(cut)?, record.u32().context(cut)?);
    let Some(before) = at.checked_sub(LOCATOR as usize).filter(|&at| tail[at..].starts_with(b"PK\x06\x07")) else {
        return Ok((offset.into(), size.into()));
    };
    let record = Cursor(&tail[before + 8..]).u64().context(cut)?;
    let record = file.bytes(record, 56).context("its 64-bit directory record runs past its end")?;
    ensure!(record.starts_with(b"PK\x06\x06"), "its 64-bit directory record is damaged");
    let mut record = Cursor(&record[40..]);
    let (size, offset) = (record.u64().context(cut)?, record.u64().context(cut)?);
    Ok((offset, size))
}

/// The contents of an entry: they follow its local header, whose name and extra field may have
/// other lengths than those of the directory.
fn content(file: &Input, header: u64, len: u64) -> anyhow::Result<Entry> {
    let local = file.bytes(header, 30).context("its header runs past the end of the file")?;
    ensure!(local.starts_with(b"PK\x03\x04"), "its header is damaged");
    let mut lengths = Cursor(&local[26..]);
    let name_and_extra = u64::from(lengths.u16().unwrap_or(0)) + u64::from(lengths.u16().unwrap_or(0));
    let offset = header + 30 + name_and_extra; // both lie in the file, far below 2^64
    let end = offset.checked_add(len);
    ensure!(end.is_some_and(|end| end <= file.len), "its {len} bytes run past the end of the file ({})", file.len);
    Ok(Entry { offset, len })
}

/// Bytes that are read from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
    }

    /// Reads an entry of the directory: its name, the offset of its header, and its length.
    fn entry(&mut self) -> anyhow::Result<(&'a [u8], u64, u64)> {
        let cut = "it ends inside an entry";
        ensure!(self.take(4) == Some(b"PK\x01\x02"), "an entry has a wrong signature");
        self.take(4).context(cut)?; // versions
        let (flags, method) = (self.u16().context(cut)?, self.u16().context(cut)?);
        self.take(8).context(cut)?; // time and checksum
        let (packed, len) = (self.u32().context(cut)?, self.u32().context(cut)?);
        let lengths = [self.u16().context(cut)?, self.u16().context(cut)?, self.u16().context(cut)?];
        self.take(8).context(cut)?; // disk and attributes
        let header = self.u32().context(cut)?;
        let [name, extra, comment] = lengths.map(usize::from);
        let name = self.take(name).context(cut)?;
        let extra = self.take(extra).context(cut)?;
        self.take(comment).context(cut)?;
        let shown = || shown(&String::from_utf8_lossy(name));
        if method != 0 {
            bail!("entry {} is compressed (method {method}): PyTorch stores entries as they are", shown());
        }
        ensure!(flags & 1 == 0, "entry {} is encrypted", shown());
        let mut wide = wide_fields(extra);
        let mut field = |value: u32| if value == IN_EXTRA { wide.u64() } else { Some(value.into()) };
        // The order of the 64-bit fields.
        let (len, packed, header) = (field(len), field(packed), field(header));
        let (Some(len), Some(packed), Some(header)) = (len, packed, header) else {
            bail!("entry {} has no 64-bit sizes", shown());
        };
        ensure!(len == packed, "entry {} has {len} bytes, and {packed} in the file", shown());
        Ok((name, header, len))
    }
}

/// The 64-bit sizes in the extra field of an entry; empty without any.
fn wide_fields(extra: &[u8]) -> Cursor<'_> {
    let mut rest = Cursor(extra);
    while let (Some(id), Some(len)) = (rest.u16(), rest.u16()) {
        let Some(field) = rest.take(len.into()) else { break };
        if id == 1 {
            return Cursor(field);
        }
    }
    Cursor(&[])
}
