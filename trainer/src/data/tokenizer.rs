//! A tokenizer.bin and its path, and whether two of them give the same meaning to each id.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use infer_core::{BOS, EOS, OwnedTokenizer, count_entries};

use crate::io::files::TOKENIZER;

/// A tokenizer.bin that was read and checked.
#[derive(Clone)]
pub struct TokenizerFile {
    /// The path that it was read from.
    pub path: PathBuf,
    /// Its contents.
    pub tokenizer: OwnedTokenizer<Vec<u8>>,
}

impl TokenizerFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes), or the file cannot be read.
    pub fn open(path: &Path) -> anyhow::Result<TokenizerFile> {
        let bytes = fs::read(path).with_context(|| format!("tokenizer {}", path.display()))?;
        TokenizerFile::from_bytes(path, bytes)
    }

    /// Checks bytes that were read from `path`.
    ///
    /// # Errors
    /// The bytes are no tokenizer.bin, or have no BOS and EOS.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> anyhow::Result<TokenizerFile> {
        let in_file = || format!("tokenizer {} is no tokenizer.bin of llama2.c, or damaged", path.display());
        let n = count_entries(&bytes).with_context(in_file)?;
        ensure!(n > EOS as usize, "tokenizer {} has {n} tokens: BOS and EOS are missing", path.display());
        let tokenizer = OwnedTokenizer::new(bytes, n).with_context(in_file)?;
        Ok(TokenizerFile { path: path.to_path_buf(), tokenizer })
    }

    /// The tokenizer that a model of `vocab_size` tokens was trained with: tokenizer.bin beside the
    /// model. If that file has another number of tokens, as in a folder of several models, it is
    /// the given one.
    ///
    /// # Errors
    /// Neither has `vocab_size` tokens, or the file is damaged and none is given.
    pub fn of_model(model: &Path, vocab_size: usize, given: Option<&TokenizerFile>) -> anyhow::Result<TokenizerFile> {
        let beside = model.with_file_name(TOKENIZER);
        let beside = beside.exists().then(|| TokenizerFile::open(&beside));
        let found = match (beside, given) {
            (Some(Ok(file)), _) if file.vocab_size() == vocab_size => Some(file),
            (Some(Err(e)), None) => return Err(e),
            _ => given.cloned(),
        };
        match found {
            Some(file) if file.vocab_size() == vocab_size => Ok(file),
            Some(file) => bail!(
                "the model {} has a vocabulary of {vocab_size} tokens, but {} has {}: give the model's own tokenizer.bin \
                 with --tokenizer",
                model.display(),
                file.path.display(),
                file.vocab_size()
            ),
            None => bail!(
                "the model {} has no tokenizer.bin of {vocab_size} tokens beside it: give its own with --tokenizer, since \
                 with another one its tokens mean nothing",
                model.display()
            ),
        }
    }

    /// Contents of the file.
    pub fn bytes(&self) -> &[u8] {
        self.tokenizer.bytes()
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get().vocab_size()
    }

    /// Bytes of text that each token stands for. BOS stands for none.
    ///
    /// # Errors
    /// As [`OwnedTokenizer::decode`].
    pub fn token_lengths(&self) -> anyhow::Result<Vec<usize>> {
        let length = |token| Ok(if token == BOS { 0 } else { self.tokenizer.decode(0, token)?.len() });
        (0..self.vocab_size() as u32).map(length).collect()
    }

    /// Whether every id has the same piece in both. Scores may differ: they only decide how a text
    /// is cut into pieces.
    pub fn means_the_same(&self, other: &TokenizerFile) -> bool {
        let (ours, theirs) = (self.tokenizer.get(), other.tokenizer.get());
        self.vocab_size() == other.vocab_size()
            && (0..self.vocab_size() as u32).all(|token| ours.piece(token) == theirs.piece(token))
    }
}
