//! Turns a corpus into token shards. All shards are planned first; then each is made by one thread
//! and is there whole or not at all.

use std::fs;
use std::io::{BufWriter, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use crc32c::crc32c_append;
use indicatif::ProgressBar;
use rayon::prelude::*;

use crate::data::corpus::{self, Counts, Piece};
use crate::data::separator::Separator;
use crate::data::shards::{Meta, Shard, read_meta, sha256, shard_path, warn_if_lopsided};
use crate::data::split;
use crate::data::tokenizer::TokenizerFile;
use crate::io::files::{TOKENIZER, TOKENIZER_JSON, lock, remove, remove_unfinished, write_whole};
use crate::report::output::note;

/// Default limit of the text per shard, in MB.
pub const SHARD_MB: NonZeroU64 = NonZeroU64::new(64).unwrap();

/// The stories to make shards of.
pub struct Input<'a> {
    /// Files and folders with stories. If empty, the stories that the shards in the folder were
    /// made from; if there are no shards, [`corpus::DEFAULT`].
    pub corpus: &'a [PathBuf],
    /// Stories to validate on. If empty, files that are named so, or a share of the corpus.
    pub valid: &'a [PathBuf],
    /// The separator between stories of plain text.
    pub separator: Option<&'a Separator>,
    /// Most bytes of text per shard.
    pub shard_bytes: u64,
}

/// Makes the shards of the stories in `out`, or goes on where an earlier call stopped.
///
/// # Errors
/// The corpus cannot be read, or `out` has shards of something else.
pub fn run(input: &Input<'_>, tokenizer: TokenizerFile, out: &Path) -> anyhow::Result<()> {
    let anew = !input.corpus.is_empty() || !input.valid.is_empty() || input.separator.is_some();
    let recorded = if anew { None } else { read_meta(out)? };
    let (separator, shards) = match recorded {
        Some(meta) => (meta.separator, meta.shards),
        None => {
            let default = [PathBuf::from(corpus::DEFAULT)];
            let corpus = if input.corpus.is_empty() { &default } else { input.corpus };
            let separator = input.separator.cloned().unwrap_or_default();
            let plan = split::plan(corpus, input.valid, &separator, input.shard_bytes)?;
            note(format!("split: {}", plan.chosen));
            (separator, plan.shards)
        }
    };
    let job = Job { meta: Meta::new(&tokenizer, separator, shards), tokenizer, replace: false };
    make(&job, out)?;
    let tokens = |i| Ok(shard_path(out, i).metadata()?.len() / job.meta.token_bytes as u64);
    let train = (1..job.meta.shards.len()).map(tokens).sum::<anyhow::Result<u64>>()?;
    warn_if_lopsided(tokens(0)?, train);
    Ok(())
}

/// Shards to make.
pub struct Job {
    /// The plan of the shards.
    pub meta: Meta,
    /// The tokenizer that cuts the stories.
    pub tokenizer: TokenizerFile,
    /// Shards of something else may be deleted.
    pub replace: bool,
}

/// Makes the shards that are missing or damaged in `out`.
///
/// # Errors
/// As [`run`], and a corpus that has changed since the shards were planned.
pub fn make(job: &Job, out: &Path) -> anyhow::Result<()> {
    let _lock = lock(out, "another trainer", "name another folder")?;
    let meta = begin(job, out)?;
    let n = meta.shards.len();
    let missing: Vec<usize> = (0..n).into_par_iter().filter(|&i| !is_whole(&meta, i, out)).collect();
    if missing.len() < n {
        note(format!("{}: {} of {n} shards are there already", out.display(), n - missing.len()));
    }
    if missing.is_empty() {
        return Ok(());
    }
    // If a text changed after some of its shards were made, the shards made now would not fit to
    // them: stories between them would be lost.
    for piece in meta.shards.iter().flat_map(|part| &part.pieces) {
        ensure!(
            !piece.has_changed()?,
            "{} has changed since the shards in {} were planned: delete the folder, or give another --out",
            piece.path.display(),
            out.display()
        );
    }
    let start = Instant::now();
    let progress = corpus::progress(missing.iter().flat_map(|&i| &meta.shards[i].pieces).map(Piece::bytes).sum());
    let meta = Mutex::new(meta);
    // Threads take the shards in order, one at a time: a stopped run leaves the first ones.
    let made = missing.par_iter().with_max_len(1);
    let made = made.map(|&i| write_shard(i, job, &meta, out, &progress)).try_reduce(Made::default, |a, b| Ok(a + b))?;
    progress.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    note(format!(
        "{}: {} shards, {}, {} tokens, {:.3} bytes per token, {:.1} MB/s",
        out.display(),
        missing.len(),
        made.read,
        made.tokens,
        made.bytes as f64 / made.tokens.saturating_sub(made.read.stories).max(1) as f64,
        made.bytes as f64 / seconds / 1e6
    ));
    Ok(())
}

/// Writes the description and the tokenizer into the folder. If the folder has them, the work goes
/// on with it. Shards of something else are deleted only if the job allows it.
fn begin(job: &Job, out: &Path) -> anyhow::Result<Meta> {
    remove_unfinished(out)?;
    let beside = out.join(TOKENIZER);
    let other = fs::read(&beside).ok().filter(|bytes| bytes != job.tokenizer.bytes());
    let there = match read_meta(out) {
        Err(_) if job.replace => None,
        there => there?,
    };
    // train-vocab leaves a tokenizer.json too. Without it, tokenizer.bin is the copy of a file
    // elsewhere and may be replaced.
    let trained = out.join(TOKENIZER_JSON);
    let is_copy =
        |bytes| there.as_ref().is_some_and(|meta| meta.tokenizer_sha256 == sha256(bytes)) && !trained.exists();
    ensure!(
        job.replace || other.as_ref().is_none_or(|bytes| is_copy(bytes)),
        "{} is another vocabulary than {}: give another --out",
        beside.display(),
        job.tokenizer.path.display()
    );
    match there {
        Some(there) if there.makes_the_same(&job.meta) => {
            write_whole(&beside, |file| Ok(file.write_all(job.tokenizer.bytes())?))?;
            return Ok(there);
        }
        Some(there) => {
            let differs = difference(&there, &job.meta);
            ensure!(
                job.replace || shards_in(out)?.is_empty(),
                "{} has shards made with {differs}: delete the folder, or give another --out",
                out.display()
            );
            note(format!("{}: what was there, made with {differs}, is replaced", out.display()));
        }
        None => ensure!(
            job.replace || shards_in(out)?.is_empty(),
            "{} has shards but no meta.json: delete the folder, or give another --out",
            out.display()
        ),
    }
    for path in shards_in(out)? {
        remove(&path).with_context(|| path.display().to_string())?;
    }
    if other.is_some() && trained.exists() {
        remove(&trained)?;
    }
    write_whole(&beside, |file| Ok(file.write_all(job.tokenizer.bytes())?))?;
    job.meta.write(out)?;
    Ok(job.meta.clone())
}

/// The difference between the shards in the folder and the wanted ones, in words.
fn difference(there: &Meta, wanted: &Meta) -> String {
    if there.tokenizer_sha256 != wanted.tokenizer_sha256 {
        format!("another vocabulary, of {} tokens", there.vocab_size)
    } else if there.separator != wanted.separator {
        format!("the separator \"{}\"", there.separator)
    } else {
        "another corpus, division or validation split".into()
    }
}

/// The files in a folder that are named as [`shard_path`] names them.
fn shards_in(out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_shard = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("shard").and_then(|rest| rest.strip_suffix(".bin"));
        number.is_some_and(|number| number.len() >= 5 && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let paths = fs::read_dir(out)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(is_shard).collect())
}

/// Whether a shard exists and has the bytes that were written.
fn is_whole(meta: &Meta, i: usize, out: &Path) -> bool {
    let path = shard_path(out, i);
    if !path.exists() {
        return false;
    }
    let open = || Shard::open_file(path, meta.token_bytes, meta.vocab_size)?.check(meta.checksum(i));
    open().inspect_err(|e| note(format!("{e:#}: it is made again"))).is_ok()
}

/// The size of one or more shards that were made.
#[derive(Clone, Copy, Default)]
struct Made {
    read: Counts,
    tokens: u64,
    /// Bytes of text.
    bytes: u64,
}

impl std::ops::Add for Made {
    type Output = Made;

    fn add(self, more: Made) -> Made {
        let mut read = self.read;
        read += more.read;
        Made { read, tokens: self.tokens + more.tokens, bytes: self.bytes + more.bytes }
    }
}

fn write_shard(i: usize, job: &Job, meta: &Mutex<Meta>, out: &Path, progress: &ProgressBar) -> anyhow::Result<Made> {
    let part = &job.meta.shards[i];
    let mut made = Made::default();
    write_whole(&shard_path(out, i), |file| {
        let mut file = BufWriter::with_capacity(1 << 20, Checked { file, crc: 0 });
        let (mut n_tokens, mut bytes) = (0, 0);
        for piece in &part.pieces {
            made.read += part.stories.read(piece, &job.meta.separator, progress, &mut |story| {
                let tokens = job.tokenizer.tokenizer.encode(story)?;
                for token in &tokens {
                    file.write_all(&token.to_le_bytes()[..job.meta.token_bytes])?;
                }
                n_tokens += tokens.len() as u64;
                bytes += story.len() as u64;
                Ok(())
            })?;
        }
        (made.tokens, made.bytes) = (n_tokens, bytes);
        ensure!(
            made.tokens > 0,
            "there is nothing to put into it, {} in {}: give more text",
            made.read,
            corpus::list(&part.pieces.iter().map(|piece| piece.path.clone()).collect::<Vec<_>>()),
        );
        let file = file.into_inner().map_err(|e| e.into_error())?;
        let mut meta = meta.lock().map_err(|_| anyhow!("another thread failed"))?;
        let n = meta.shards.len();
        meta.crc32c.resize(n, None);
        meta.crc32c[i] = Some(file.crc);
        meta.write(out)
    })?;
    Ok(made)
}

/// A writer that computes the checksum of the bytes on their way to the file.
struct Checked<W> {
    file: W,
    crc: u32,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.crc = crc32c_append(self.crc, &bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
