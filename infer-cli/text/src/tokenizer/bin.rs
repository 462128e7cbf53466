//! tokenizer.bin, as llama2.c has it.

use std::borrow::Cow;

use infer_core::tokenizer::NEVER_MERGES;
use infer_core::{BOS, EOS, OwnedTokenizer, UNK};

use crate::added::Added;

/// A tokenizer.bin with its index.
#[derive(Debug)]
pub struct BinVocabulary {
    tokenizer: OwnedTokenizer<Vec<u8>>,
}

impl BinVocabulary {
    /// The vocabulary, by default all of the file's, and its added tokens.
    pub fn new(bytes: Vec<u8>, vocab_size: Option<usize>) -> anyhow::Result<(BinVocabulary, Vec<Added>)> {
        let tokenizer = match vocab_size {
            Some(vocab_size) => OwnedTokenizer::new(bytes, vocab_size)?,
            None => OwnedTokenizer::whole(bytes)?,
        };
        let added = (0..tokenizer.get().vocab_size() as u32).filter_map(|token| added(&tokenizer, token)).collect();
        Ok((BinVocabulary { tokenizer }, added))
    }

    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get().vocab_size()
    }

    pub fn spare_bytes(&self) -> usize {
        self.tokenizer.bytes().len() - self.tokenizer.get().file_bytes()
    }

    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode(text)?;
        tokens.remove(0); // BOS
        Ok(tokens)
    }

    pub fn decode(&self, after_special: bool, token: u32) -> Cow<'_, [u8]> {
        let previous = if after_special { BOS } else { UNK };
        Cow::Borrowed(self.tokenizer.decode(previous, token).unwrap_or_default())
    }

    pub fn token(&self, piece: &str) -> Option<u32> {
        let tokenizer = self.tokenizer.get();
        (0..tokenizer.vocab_size() as u32).find(|&token| tokenizer.piece(token) == Some(piece.as_bytes()))
    }
}

/// Added tokens, which importers write as pieces that no merge makes, and the names of BOS and EOS,
/// which have line feeds around them in the file.
fn added(tokenizer: &OwnedTokenizer<Vec<u8>>, token: u32) -> Option<Added> {
    let tokenizer = tokenizer.get();
    let piece = str::from_utf8(tokenizer.piece(token)?).ok()?;
    let name = match token {
        BOS | EOS => piece.trim(),
        UNK => return None,
        _ if tokenizer.score(token)? <= NEVER_MERGES && tokenizer.decode(UNK, token).ok()? == piece.as_bytes() => piece,
        _ => return None,
    };
    // A single character would be found in texts all the same.
    (name.chars().nth(1).is_some()).then(|| Added { token, name: name.into(), lstrip: false, rstrip: false })
}
