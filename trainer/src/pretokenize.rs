//! From a corpus to token shards: each shard is planned before, made by one thread, and there whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use infer_core::{IndexEntry, MergeSlot, Tokenizer, build_index, count_entries};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::corpus::{self, Counts, Piece, Separator};
use crate::files::{remove_unfinished, write_whole};
use crate::shards::{Meta, Part, Selection, meta_path, read_meta, sha256, shard_path};

/// One story in this many is for validation, where neither --valid nor the corpus says which.
const VALIDATION_SHARE: u64 = 20;
/// Most text per shard, unless told otherwise.
pub const SHARD_MB: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Turns a corpus into token shards; goes on where it was stopped
#[derive(clap::Args)]
pub struct Args {
    /// Files and folders with stories: .json, .jsonl, or plain text with a separator
    #[arg(value_name = "PATH", default_value = corpus::DEFAULT)]
    pub corpus: Vec<PathBuf>,
    /// Stories to validate on [default: the first of several .json files, else one story in twenty]
    #[arg(long, value_name = "PATH")]
    pub valid: Vec<PathBuf>,
    /// Size of the vocabulary, to find its folder
    #[arg(long, value_name = "N", required_unless_present = "out")]
    pub vocab_size: Option<usize>,
    /// Folder for the shards [default: data/tokN]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// The vocabulary [default: tokenizer.bin in the folder]
    #[arg(long, value_name = "TOKENIZER.bin")]
    pub tokenizer: Option<PathBuf>,
    /// What separates the stories of plain text; \n is a line break
    #[arg(long, value_name = "TEXT", default_value_t)]
    pub separator: Separator,
    /// Threads [default: one per CPU]
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    /// Most text per shard, in MB; a .json file is not divided
    #[arg(long, value_name = "MB", default_value_t = SHARD_MB)]
    pub shard_mb: NonZeroUsize,
}

/// Runs `trainer pretokenize`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let out = args.out.clone().unwrap_or_else(|| corpus::default_folder(args.vocab_size.unwrap_or_default()));
    let vocabulary = Vocabulary::open(&args.tokenizer.clone().unwrap_or_else(|| out.join("tokenizer.bin")))?;
    let tokenizer = vocabulary.tokenizer();
    let vocab_size = tokenizer.vocab_size();
    if let Some(wanted) = args.vocab_size.filter(|&wanted| wanted != vocab_size) {
        bail!(
            "the tokenizer {} has {vocab_size} tokens, but the vocabulary is to have {wanted}: give one that has, or the \
             size {vocab_size}",
            vocabulary.path.display()
        );
    }
    let meta = Meta {
        vocab_size,
        token_bytes: if vocab_size > 1 << 16 { 4 } else { 2 },
        tokenizer_sha256: sha256(&vocabulary.bytes),
        separator: String::from(&*args.separator),
        shards: plan(args)?,
    };
    fs::create_dir_all(&out).with_context(|| format!("folder {}", out.display()))?;
    let lock = File::create(out.join(".lock")).with_context(|| format!("folder {}", out.display()))?;
    lock.try_lock().map_err(|e| anyhow!("{}: another `trainer pretokenize` is at work here ({e})", out.display()))?;
    begin(&out, &meta, &vocabulary)?;

    let missing: Vec<usize> = (0..meta.shards.len()).filter(|&i| !shard_path(&out, i).exists()).collect();
    let done = meta.shards.len() - missing.len();
    if done > 0 {
        eprintln!("{}: {done} of {} shards are there already", out.display(), meta.shards.len());
    }
    if missing.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    let bytes = missing.iter().flat_map(|&i| &meta.shards[i].pieces).map(Piece::len).sum();
    let progress = corpus::progress(bytes);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.workers.map_or(0, NonZeroUsize::get)).build()?;
    // One after the other by number, so that what a stopped run leaves is a beginning.
    let made = pool.install(|| {
        let shards = missing.par_iter().with_max_len(1);
        shards
            .map(|&i| write_shard(&shard_path(&out, i), &meta.shards[i], &meta, tokenizer, &progress))
            .try_reduce(Made::default, |a, b| Ok(a + b))
    })?;
    progress.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{}: {} shards, {} stories ({} empty ones skipped), {} tokens, {:.3} bytes per token, {:.1} MB/s",
        out.display(),
        missing.len(),
        made.stories,
        made.empty,
        made.tokens,
        made.bytes as f64 / (made.tokens - made.stories).max(1) as f64,
        made.bytes as f64 / seconds / 1e6
    );
    Ok(())
}

/// Which part of the corpus goes into which shard; the first is the validation split.
fn plan(args: &Args) -> anyhow::Result<Vec<Part>> {
    let mut training = corpus::files(&args.corpus)?;
    let all = |pieces| Part { pieces, stories: Selection::All };
    let (valid, stories) = if !args.valid.is_empty() {
        (all(corpus::files(&args.valid)?), Selection::All)
    } else if training.len() > 1 && !training.iter().any(Piece::is_text) {
        (all(vec![training.remove(0)]), Selection::All)
    } else {
        (Part { pieces: training.clone(), stories: Selection::Validation }, Selection::Training)
    };
    let mut shards = vec![valid];
    let most = (args.shard_mb.get() as u64).saturating_mul(1 << 20);
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    for piece in training.into_iter().flat_map(|piece| divide(piece, most)) {
        if bytes + piece.len() > most && !pieces.is_empty() {
            shards.push(Part { pieces: std::mem::take(&mut pieces), stories });
            bytes = 0;
        }
        bytes += piece.len();
        pieces.push(piece);
    }
    shards.push(Part { pieces, stories });
    Ok(shards)
}

/// Equal pieces of at most `most` bytes of a plain text; a JSON file as it is.
fn divide(piece: Piece, most: u64) -> Vec<Piece> {
    let n = if piece.is_text() { piece.len().div_ceil(most).max(1) } else { 1 };
    let at = |i| piece.start + (u128::from(piece.len()) * u128::from(i) / u128::from(n)) as u64;
    (0..n).map(|i| Piece { path: piece.path.clone(), start: at(i), end: at(i + 1) }).collect()
}

/// Writes the description and the tokenizer into the folder, or makes sure that a run to go on with had the same.
fn begin(out: &Path, meta: &Meta, vocabulary: &Vocabulary) -> anyhow::Result<()> {
    remove_unfinished(out)?;
    let beside = out.join("tokenizer.bin");
    match read_meta(out)? {
        Some(there) if there == *meta => {}
        Some(there) => {
            let differs = if there.tokenizer_sha256 != meta.tokenizer_sha256 {
                format!("another vocabulary, of {} tokens", there.vocab_size)
            } else if there.separator != meta.separator {
                format!("the separator {:?}", there.separator)
            } else {
                "another corpus, division or validation split".into()
            };
            bail!("{} has shards made with {differs}: delete it, or give another --out", meta_path(out).display());
        }
        None if beside.exists() && fs::read(&beside)? != vocabulary.bytes => {
            bail!("{} is another vocabulary than {}: give another --out", beside.display(), vocabulary.path.display())
        }
        None if shard_path(out, 0).exists() => {
            bail!("{} has shards but no meta.json: give another --out", out.display())
        }
        None => {
            write_whole(&beside, |file| Ok(file.write_all(&vocabulary.bytes)?))?;
            write_whole(&meta_path(out), |file| Ok(serde_json::to_writer_pretty(file, meta)?))?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Made {
    stories: u64,
    empty: u64,
    tokens: u64,
    /// Of text.
    bytes: u64,
}

impl std::ops::Add for Made {
    type Output = Made;

    fn add(self, more: Made) -> Made {
        Made {
            stories: self.stories + more.stories,
            empty: self.empty + more.empty,
            tokens: self.tokens + more.tokens,
            bytes: self.bytes + more.bytes,
        }
    }
}

fn write_shard(
    path: &Path,
    part: &Part,
    meta: &Meta,
    tokenizer: Tokenizer<'_>,
    progress: &ProgressBar,
) -> anyhow::Result<Made> {
    let mut made = Made::default();
    write_whole(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let (mut scratch, mut tokens) = (Vec::new(), Vec::new());
        let mut read = Counts::default();
        for piece in &part.pieces {
            read += piece.read(&meta.separator, progress, &mut |story| {
                if !part.stories.has(story) {
                    return Ok(());
                }
                let most = Tokenizer::max_tokens(story.len());
                if tokens.len() < most {
                    (scratch, tokens) = (vec![MergeSlot::EMPTY; most], vec![0; most]);
                }
                let n = tokenizer.encode(story, true, &mut scratch, &mut tokens)?;
                for token in &tokens[..n] {
                    out.write_all(&token.to_le_bytes()[..meta.token_bytes])?;
                }
                made = made + Made { stories: 1, empty: 0, tokens: n as u64, bytes: story.len() as u64 };
                Ok(())
            })?;
        }
        ensure!(
            made.stories > 0,
            "there is nothing to put into it: {} stories in {}, {}",
            read.stories,
            corpus::list(&part.pieces.iter().map(|piece| piece.path.clone()).collect::<Vec<_>>()),
            match part.stories {
                Selection::All => "give a corpus with stories, or a larger --shard-mb",
                _ => "too few for a training and a validation split: give --valid, or another --separator",
            }
        );
        made.empty = read.empty;
        Ok(out.flush()?)
    })?;
    Ok(made)
}

impl Selection {
    fn has(self, story: &str) -> bool {
        let validation = || {
            let hash: [u8; 32] = Sha256::digest(story).into();
            u64::from_le_bytes(std::array::from_fn(|i| hash[i])) % VALIDATION_SHARE == 0
        };
        match self {
            Selection::All => true,
            Selection::Validation => validation(),
            Selection::Training => !validation(),
        }
    }
}

/// A tokenizer.bin with its index.
struct Vocabulary {
    path: PathBuf,
    bytes: Vec<u8>,
    index: Vec<IndexEntry>,
}

impl Vocabulary {
    fn open(path: &Path) -> anyhow::Result<Vocabulary> {
        let in_file = || format!("tokenizer {}", path.display());
        let bytes = fs::read(path)
            .with_context(|| format!("{}: make one with `trainer train-vocab`, or give --tokenizer", in_file()))?;
        let n = count_entries(&bytes).with_context(in_file)?;
        let mut index = vec![IndexEntry::EMPTY; n];
        build_index(&bytes, n, &mut index).with_context(in_file)?;
        Ok(Vocabulary { path: path.to_path_buf(), bytes, index })
    }

    fn tokenizer(&self) -> Tokenizer<'_> {
        Tokenizer::with_index(&self.bytes, &self.index)
    }
}
