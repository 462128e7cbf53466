//! The layout of a session file.
//!
//! ```text
//! "infer-cli chat\n\0"        16 bytes
//! length of the JSON object   u32, little endian
//! JSON object                 what the file belongs to, and the conversation
//! KV cache                    the stretches of Session::save, for `cached` positions
//! FNV-1a of all that          u64, little endian
//! ```
//!
//! The fuzz target `session` of infer-core includes this file too.

use std::io::{self, Write};

use anyhow::{Context, ensure};
use infer_core::{HASH_START, hash_bytes};

const MAGIC: &[u8; 16] = b"infer-cli chat\n\0";
pub const DAMAGED: &str = "it is damaged: its checksum is wrong. Remove it to begin anew";

/// The JSON object and the KV cache of a session file.
pub fn parts(file: &[u8]) -> anyhow::Result<(&[u8], &[u8])> {
    let start = file.strip_prefix(MAGIC).context("it is no session file of infer-cli: give another name")?;
    let (body, sum) = start.split_last_chunk().context(DAMAGED)?;
    ensure!(u64::from_le_bytes(*sum) == hash_bytes(HASH_START, &file[..file.len() - sum.len()]), DAMAGED);
    let (length, body) = body.split_first_chunk().context(DAMAGED)?;
    body.split_at_checked(u32::from_le_bytes(*length) as usize).context(DAMAGED)
}

/// Has `resume` fill its stretches from the KV cache of a file, and checks that it takes all of it.
pub fn load(
    mut kv: &[u8],
    resume: impl FnOnce(&mut dyn FnMut(&mut [u8]) -> anyhow::Result<()>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    resume(&mut |bytes| {
        let (stretch, rest) = kv.split_at_checked(bytes.len()).context(DAMAGED)?;
        bytes.copy_from_slice(stretch);
        kv = rest;
        Ok(())
    })?;
    ensure!(kv.is_empty(), DAMAGED);
    Ok(())
}

/// Writes a session file, with the KV cache that `save` writes.
pub fn write(
    out: &mut impl Write,
    json: &[u8],
    save: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut out = Summed { out: io::BufWriter::new(out), sum: HASH_START };
    out.write_all(MAGIC)?;
    out.write_all(&u32::try_from(json.len()).context("the conversation is too long")?.to_le_bytes())?;
    out.write_all(json)?;
    save(&mut out)?;
    let sum = out.sum;
    out.write_all(&sum.to_le_bytes())?;
    Ok(out.out.flush()?)
}

/// Sums up what is written.
struct Summed<W> {
    out: W,
    sum: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.sum = hash_bytes(self.sum, &bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
