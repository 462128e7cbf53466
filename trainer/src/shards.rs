//! Token shards: flat files of u16 (u32 for vocabularies above 65,536), little endian, BOS before each story.
//!
//! A folder holds `meta.json`, the `tokenizer.bin` that gave the ids, and `shard00000.bin`, `shard00001.bin`, …, of
//! which the first is the validation split. meta.json is written first and names every shard that there is to be.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use infer_core::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::corpus::Piece;
use crate::files;

/// What a folder of shards was made from. Two folders with equal `Meta` hold the same tokens.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct Meta {
    /// Number of tokens of the vocabulary.
    pub vocab_size: usize,
    /// Bytes per token in the shards: 2 or 4.
    pub token_bytes: usize,
    /// SHA-256 of tokenizer.bin, in hexadecimal.
    pub tokenizer_sha256: String,
    /// What separates the stories of plain text.
    pub separator: String,
    /// Of each shard: the pieces of the corpus whose stories it holds.
    pub shards: Vec<Part>,
}

/// What one shard is made from.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Part {
    /// In this order.
    pub pieces: Vec<Piece>,
    /// Which of their stories.
    pub stories: Selection,
}

/// Stories of a piece that go into a shard.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Every story.
    All,
    /// One in twenty, chosen by the hash of its text, so that copies of a story stay together.
    Validation,
    /// Those that `Validation` leaves.
    Training,
}

/// An opened folder of token shards.
pub struct Shards {
    meta: Meta,
    tokenizer: PathBuf,
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
    /// Maps every shard of a folder that `trainer pretokenize` has finished.
    ///
    /// # Errors
    /// A missing or damaged file, and a tokenizer.bin other than the one that gave the ids.
    pub fn open(dir: &Path) -> anyhow::Result<Shards> {
        let Some(meta) = read_meta(dir)? else {
            bail!("{} has no token shards: make them with `trainer pretokenize --out {0}`", dir.display());
        };
        let tokenizer = dir.join("tokenizer.bin");
        let bytes = std::fs::read(&tokenizer).with_context(|| format!("tokenizer {}", tokenizer.display()))?;
        ensure!(
            sha256(&bytes) == meta.tokenizer_sha256,
            "{} is not the tokenizer that the shards beside it were made with: put that one back, or run \
             `trainer pretokenize` into another folder",
            tokenizer.display()
        );
        ensure!(meta.shards.len() > 1, "{} names no training shard", meta_path(dir).display());
        let shards = (0..meta.shards.len()).map(|i| Shard::open(dir, i, &meta)).collect::<anyhow::Result<_>>()?;
        Ok(Shards { meta, tokenizer, shards })
    }

    /// Number of tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.meta.vocab_size
    }

    /// The tokenizer.bin that gave the ids.
    pub fn tokenizer(&self) -> &Path {
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
    fn open(dir: &Path, i: usize, meta: &Meta) -> anyhow::Result<Shard> {
        let path = shard_path(dir, i);
        if !path.exists() {
            let n = meta.shards.len();
            bail!(
                "shard {} of {n} is missing: run `trainer pretokenize` again, it goes on where it stopped",
                path.display()
            );
        }
        Shard::open_file(path, meta.token_bytes, meta.vocab_size)
    }

    /// Maps a flat file of tokens.
    pub fn open_file(path: PathBuf, token_bytes: usize, vocab_size: usize) -> anyhow::Result<Shard> {
        let map = files::map(&path).with_context(|| format!("shard {}", path.display()))?;
        let bytes = map.len();
        ensure!(
            bytes > 0 && bytes.is_multiple_of(token_bytes),
            "shard {} has {bytes} bytes, not a multiple of {token_bytes} and above 0: delete it and make it again",
            path.display(),
        );
        Ok(Shard { path, map, token_bytes, vocab_size })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.map.len() / self.token_bytes
    }

    /// Copies the tokens from `at` on, as many as `out` takes.
    ///
    /// # Errors
    /// A range beyond the end, and a token that the vocabulary does not have.
    pub fn read(&self, at: usize, out: &mut [u32]) -> anyhow::Result<()> {
        let size = self.token_bytes;
        let end = at.checked_add(out.len()).filter(|&end| end <= self.len());
        let Some(end) = end else {
            bail!("shard {} has {} tokens: {} from {at} on is too many", self.path.display(), self.len(), out.len());
        };
        for (token, bytes) in out.iter_mut().zip(self.map[at * size..end * size].chunks_exact(size)) {
            *token = match *bytes {
                [a, b] => u32::from(u16::from_le_bytes([a, b])),
                [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                _ => unreachable!("read_meta() checks token_bytes"),
            };
            ensure!(
                (*token as usize) < self.vocab_size,
                "shard {} has token {token}, the vocabulary {} tokens: it is damaged, delete it and run \
                 `trainer pretokenize` again",
                self.path.display(),
                self.vocab_size
            );
        }
        Ok(())
    }
}

/// Path of shard `i`.
pub fn shard_path(dir: &Path, i: usize) -> PathBuf {
    dir.join(format!("shard{i:05}.bin"))
}

/// Path of the description of a folder of shards.
pub fn meta_path(dir: &Path) -> PathBuf {
    dir.join("meta.json")
}

/// The description of a folder of shards, if there is one.
pub fn read_meta(dir: &Path) -> anyhow::Result<Option<Meta>> {
    let path = meta_path(dir);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let meta: Meta =
        serde_json::from_slice(&text).with_context(|| format!("{} does not describe token shards", path.display()))?;
    ensure!(matches!(meta.token_bytes, 2 | 4), "{}: token_bytes is {}, not 2 or 4", path.display(), meta.token_bytes);
    Ok(Some(meta))
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a validation shard of three tokens and a training shard of two.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let part = Part { pieces: Vec::new(), stories: Selection::All };
        let meta = Meta {
            vocab_size: 300,
            token_bytes: 2,
            tokenizer_sha256: sha256(b"tokenizer"),
            separator: "\n".into(),
            shards: vec![part.clone(), part],
        };
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("meta.json", &serde_json::to_vec(&meta).unwrap());
        write("tokenizer.bin", b"tokenizer");
        write("shard00000.bin", &[1, 0, 3, 1, 43, 1]);
        write("shard00001.bin", &[1, 0, 44, 1]);
        folder
    }

    #[test]
    fn tokens_are_read_and_checked() {
        let folder = folder();
        let shards = Shards::open(folder.path()).unwrap();
        assert_eq!((shards.vocab_size(), shards.valid().len(), shards.train().len()), (300, 3, 1));
        let mut tokens = [0; 2];
        shards.valid().read(1, &mut tokens).unwrap();
        assert_eq!(tokens, [259, 299]);
        let fails = |shard: &Shard, at: usize| shard.read(at, &mut [0; 2]).unwrap_err().to_string();
        assert!(fails(shards.valid(), 2).contains("has 3 tokens: 2 from 2 on"));
        assert!(fails(shards.valid(), usize::MAX).contains("too many"));
        assert!(fails(&shards.train()[0], 0).contains("token 300, the vocabulary 300"));
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let fails_with = |name: &str, bytes: Option<&[u8]>, words: &str| {
            let folder = folder();
            let path = folder.path().join(name);
            bytes.map_or_else(|| std::fs::remove_file(&path), |bytes| std::fs::write(&path, bytes)).unwrap();
            let message = format!("{:#}", Shards::open(folder.path()).err().unwrap());
            assert!(message.contains(words), "no {words:?} in: {message}");
            assert!(message.contains(folder.path().to_str().unwrap()), "{message}");
        };
        fails_with("meta.json", None, "has no token shards");
        fails_with("meta.json", Some(b"{"), "does not describe token shards");
        fails_with("tokenizer.bin", None, "No such file");
        fails_with("tokenizer.bin", Some(b"another"), "is not the tokenizer");
        fails_with("shard00001.bin", None, "shard00001.bin of 2 is missing");
        fails_with("shard00001.bin", Some(b"odd"), "has 3 bytes");
        fails_with("shard00001.bin", Some(b""), "has 0 bytes");
    }
}
