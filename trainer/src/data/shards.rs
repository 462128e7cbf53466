//! Reads token shards: flat files of u16 (u32 for vocabularies above 65,536), little endian, with
//! BOS before each story.
//!
//! A folder holds `meta.json`, the `tokenizer.bin` that gave the ids, and `shard00000.bin`,
//! `shard00001.bin`, …. The first shard is the validation split. meta.json is written first and
//! names every shard of the plan. The checksum of a shard is added to it before the shard gets its
//! name.
//!
//! Folders of llama2.c's tinystories.py are read too. They have `data00.bin`, the validation split,
//! `data01.bin`, … of u16.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use infer_core::{BOS, Mmap};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::corpus;
use crate::data::separator::Separator;
use crate::data::split::Part;
use crate::data::tokenizer::TokenizerFile;
use crate::io::files::{self, TOKENIZER, write_whole};
use crate::report::output::note;

/// The contents of meta.json: the plan of the shards, and the checksums of those that are made.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Meta {
    /// Number of tokens of the vocabulary.
    pub vocab_size: usize,
    /// Bytes per token in the shards: 2 or 4.
    pub token_bytes: usize,
    /// SHA-256 of tokenizer.bin, in hexadecimal.
    pub tokenizer_sha256: String,
    /// The separator between stories of plain text.
    pub separator: Separator,
    /// The plans of the shards.
    pub shards: Vec<Part>,
    /// CRC-32C of each shard that is made. Folders of earlier versions have no checksums.
    #[serde(default)]
    pub crc32c: Vec<Option<u32>>,
}

/// Bytes per token for a vocabulary of this size.
pub fn token_bytes(vocab_size: usize) -> usize {
    if vocab_size > 1 << 16 { 4 } else { 2 }
}

impl Meta {
    /// The description of shards that are still to be made.
    pub fn new(tokenizer: &TokenizerFile, separator: Separator, shards: Vec<Part>) -> Meta {
        let vocab_size = tokenizer.vocab_size();
        let (token_bytes, tokenizer_sha256) = (token_bytes(vocab_size), sha256(tokenizer.bytes()));
        Meta { vocab_size, token_bytes, tokenizer_sha256, separator, crc32c: vec![None; shards.len()], shards }
    }

    /// Whether both describe the same tokens.
    pub fn makes_the_same(&self, other: &Meta) -> bool {
        let plan = |meta: &Meta| (meta.vocab_size, meta.token_bytes);
        plan(self) == plan(other)
            && self.tokenizer_sha256 == other.tokenizer_sha256
            && self.separator == other.separator
            && self.shards == other.shards
    }

    /// Writes meta.json.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        write_whole(&meta_path(dir), |file| Ok(serde_json::to_writer_pretty(file, self)?))
    }

    /// Numbers of the shards that do not exist yet.
    pub fn missing(&self, dir: &Path) -> Vec<usize> {
        (0..self.shards.len()).filter(|&i| !shard_path(dir, i).exists()).collect()
    }

    /// Checksum of shard `i`, where there is one.
    pub fn checksum(&self, i: usize) -> Option<u32> {
        self.crc32c.get(i).copied().flatten()
    }
}

/// An opened folder of token shards.
pub struct Shards {
    tokenizer: TokenizerFile,
    shards: Vec<Shard>,
}

/// One memory-mapped shard.
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    token_bytes: usize,
    vocab_size: usize,
}

impl Shards {
    /// Whether a folder has token shards.
    ///
    /// # Errors
    /// The folder cannot be read, or meta.json is damaged.
    pub fn are_in(dir: &Path) -> anyhow::Result<bool> {
        Ok(dir.is_dir() && (read_meta(dir)?.is_some() || !llama2c_shards(dir)?.is_empty()))
    }

    /// Maps every shard of a folder that `trainer pretokenize` or llama2.c has finished.
    /// `tokenizer` is used for shards of llama2.c that have no tokenizer of their own.
    ///
    /// # Errors
    /// A file is missing or damaged, or tokenizer.bin is not the one that gave the ids.
    pub fn open(dir: &Path, tokenizer: Option<&TokenizerFile>) -> anyhow::Result<Shards> {
        match read_meta(dir)? {
            Some(meta) => Shards::open_ours(dir, &meta),
            None => Shards::open_llama2c(dir, tokenizer),
        }
    }

    fn open_ours(dir: &Path, meta: &Meta) -> anyhow::Result<Shards> {
        let tokenizer = TokenizerFile::open(&dir.join(TOKENIZER))?;
        ensure!(
            sha256(tokenizer.bytes()) == meta.tokenizer_sha256,
            "{} is not the tokenizer that the shards beside it were made with: put that one back, or run \
             `trainer pretokenize` into another folder",
            tokenizer.path.display()
        );
        let vocab_size = tokenizer.vocab_size();
        ensure!(
            meta.shards.len() > 1 && (meta.vocab_size, meta.token_bytes) == (vocab_size, token_bytes(vocab_size)),
            "{} is damaged: it does not describe two shards or more of {vocab_size} tokens: delete the folder and make it \
             again",
            meta_path(dir).display()
        );
        let again = format!("run `trainer pretokenize --out {}` to make it again", dir.display());
        if let Some(i) = meta.missing(dir).first() {
            bail!("shard {} of {} is missing: {again}", shard_path(dir, *i).display(), meta.shards.len());
        }
        let shards = (0..meta.shards.len()).into_par_iter().map(|i| {
            let shard = Shard::open_file(shard_path(dir, i), meta.token_bytes, vocab_size)?;
            shard.check(meta.checksum(i))?;
            Ok(shard)
        });
        let shards = shards.collect::<anyhow::Result<_>>().map_err(|e| anyhow!("{e:#}: {again}"))?;
        if (0..meta.shards.len()).any(|i| meta.checksum(i).is_none()) {
            note(format!(
                "note: {} has no checksums, so damage to its shards goes unnoticed",
                meta_path(dir).display()
            ));
        }
        Ok(Shards { tokenizer, shards })
    }

    fn open_llama2c(dir: &Path, tokenizer: Option<&TokenizerFile>) -> anyhow::Result<Shards> {
        let paths = llama2c_shards(dir)?;
        ensure!(
            !paths.is_empty(),
            "{} has no token shards: make them with `trainer pretokenize --out {0}`",
            dir.display()
        );
        ensure!(
            paths.len() > 1,
            "{} has one shard of llama2.c, the validation split: there is none to train on",
            dir.display()
        );
        let tokenizer = match (own_of_llama2c(dir)?, tokenizer) {
            (Some(own), _) => own,
            (None, Some(given)) => given.clone(),
            (None, None) => beside_llama2c(dir)?,
        };
        let open = |path: PathBuf| {
            let shard = Shard::open_file(path, 2, tokenizer.vocab_size())?;
            let mut first = [0];
            shard.read(0, &mut first)?;
            ensure!(first == [BOS], "{} does not begin with BOS: it is no shard of llama2.c", shard.path.display());
            Ok(shard)
        };
        let shards = paths.into_iter().map(open).collect::<anyhow::Result<_>>()?;
        Ok(Shards { tokenizer, shards })
    }

    /// Number of tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// The tokenizer.bin that gave the ids.
    pub fn tokenizer(&self) -> &TokenizerFile {
        &self.tokenizer
    }

    /// The validation split.
    pub fn valid(&self) -> &Shard {
        &self.shards[0]
    }

    /// The training split; never empty.
    pub fn train(&self) -> &[Shard] {
        &self.shards[1..]
    }
}

impl Shard {
    /// Maps a flat file of tokens.
    ///
    /// # Errors
    /// The file cannot be mapped, is empty, or ends inside of a token.
    pub fn open_file(path: PathBuf, token_bytes: usize, vocab_size: usize) -> anyhow::Result<Shard> {
        let map = files::map(&path).with_context(|| format!("shard {}", path.display()))?;
        let bytes = map.len();
        ensure!(
            bytes > 0 && bytes.is_multiple_of(token_bytes),
            "shard {} is damaged: it has {bytes} bytes, not a multiple of {token_bytes} and above 0",
            path.display(),
        );
        Ok(Shard { path, map, token_bytes, vocab_size })
    }

    /// Compares the bytes with their checksum, if it is known. Takes about as long as reading them.
    ///
    /// # Errors
    /// The bytes have another checksum.
    pub fn check(&self, checksum: Option<u32>) -> anyhow::Result<()> {
        let found = crc32c::crc32c(&self.map);
        ensure!(
            checksum.is_none_or(|checksum| checksum == found),
            "shard {} is damaged: its bytes do not have the checksum that was noted when it was made",
            self.path.display()
        );
        Ok(())
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.map.len() / self.token_bytes
    }

    /// Fills `out` with the tokens from `at` on.
    ///
    /// # Errors
    /// The range goes beyond the end, or the vocabulary does not have a token.
    pub fn read(&self, at: usize, out: &mut [u32]) -> anyhow::Result<()> {
        let size = self.token_bytes;
        let end = at.checked_add(out.len()).filter(|&end| end <= self.n_tokens());
        let Some(end) = end else {
            bail!(
                "shard {} has {} tokens: {} from {at} on is too many",
                self.path.display(),
                self.n_tokens(),
                out.len()
            );
        };
        for (token, bytes) in out.iter_mut().zip(self.map[at * size..end * size].chunks_exact(size)) {
            *token = match *bytes {
                [a, b] => u32::from(u16::from_le_bytes([a, b])),
                [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                _ => unreachable!("token_bytes() is 2 or 4"),
            };
            ensure!(
                (*token as usize) < self.vocab_size,
                "shard {} has token {token}, the vocabulary {} tokens: it is damaged, or of another vocabulary",
                self.path.display(),
                self.vocab_size
            );
        }
        Ok(())
    }
}

/// Warns if the validation split has more tokens than the training split: they are likely mistaken
/// for each other.
pub fn warn_if_lopsided(valid: u64, train: u64) {
    if valid > train {
        note(format!(
            "warning: the validation split has {valid} tokens, more than the {train} to train on: are they swapped? \
             --valid names the stories to validate on when shards are made"
        ));
    }
}

/// The shards of llama2.c's tinystories.py in a folder, in order. None if the folder has stories
/// too: those come first.
fn llama2c_shards(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = dir.read_dir().with_context(|| format!("folder {}", dir.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.by_ref().collect::<std::io::Result<Vec<_>>>()?;
    let is_shard = |name: &&String| {
        let number = name.strip_prefix("data").and_then(|rest| rest.strip_suffix(".bin"));
        number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if names.iter().any(|name| corpus::is_named_as_stories(name.as_ref())) {
        return Ok(Vec::new());
    }
    let mut shards: Vec<PathBuf> = names.iter().filter(is_shard).map(|name| dir.join(name)).collect();
    shards.sort();
    Ok(shards)
}

/// The tokenizer that gave the ids of llama2.c's shards in, say, `data/tok4096`: tokenizer.bin in
/// that folder, or `data/tok4096.bin`, where llama2.c's tokenizer.py writes it.
fn own_of_llama2c(dir: &Path) -> anyhow::Result<Option<TokenizerFile>> {
    let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
    let mut places = [dir.join(TOKENIZER), dir.with_extension("bin")].into_iter();
    places.find(|path| path.exists()).map(|path| TokenizerFile::open(&path)).transpose()
}

/// The tokenizer.bin beside the folder of llama2.c's shards. It may be Llama 2's and not that of
/// the shards: the one for a folder `tok4096` must have 4,096 tokens.
fn beside_llama2c(dir: &Path) -> anyhow::Result<TokenizerFile> {
    let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
    let path = dir.with_file_name(TOKENIZER);
    ensure!(
        path.exists(),
        "there is no tokenizer.bin for the shards of llama2.c in {}: give theirs with --tokenizer; llama2.c's \
         tokenizer.py makes it from {}",
        dir.display(),
        dir.with_extension("model").display()
    );
    let tokenizer = TokenizerFile::open(&path)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let n: Option<usize> = name.strip_prefix("tok").and_then(|n| n.parse().ok());
    ensure!(
        n.is_none_or(|n| n == tokenizer.vocab_size()),
        "{} has {} tokens, but the folder {} is named after another vocabulary: give the shards' own with --tokenizer",
        path.display(),
        tokenizer.vocab_size(),
        dir.display()
    );
    Ok(tokenizer)
}

/// Path of shard `i`.
pub fn shard_path(dir: &Path, i: usize) -> PathBuf {
    dir.join(format!("shard{i:05}.bin"))
}

/// Path of the description of a folder of shards.
pub fn meta_path(dir: &Path) -> PathBuf {
    dir.join("meta.json")
}

/// Reads the description of a folder of shards, if there is one.
///
/// # Errors
/// The file cannot be read, or does not describe shards.
pub fn read_meta(dir: &Path) -> anyhow::Result<Option<Meta>> {
    let path = meta_path(dir);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let meta: Meta =
        serde_json::from_slice(&text).with_context(|| format!("{} does not describe token shards", path.display()))?;
    Ok(Some(meta))
}

/// SHA-256 of the bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
