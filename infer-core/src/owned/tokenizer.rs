//! A tokenizer with its index, for texts of any length.

use std::vec::Vec;

use super::memory::vec_of;
use crate::error::Error;
use crate::tokenizer::{BOS, IndexEntry, MergeSlot, Tokenizer, UNK, build_index, count_entries};

/// The bytes of a tokenizer.bin, owned (`Vec<u8>`) or borrowed (`&[u8]`), and their index.
#[derive(Clone, Debug)]
pub struct OwnedTokenizer<B> {
    bytes: B,
    index: Vec<IndexEntry>,
    /// The results of `with_index`'s scan of all pieces, kept so that `get` costs nothing.
    facts: Tokenizer<'static>,
}

impl<B: AsRef<[u8]>> OwnedTokenizer<B> {
    /// The first `vocab_size` entries of the file, those of a model with that vocabulary.
    ///
    /// # Errors
    /// As [`build_index`], and [`Error::OutOfMemory`].
    pub fn new(bytes: B, vocab_size: usize) -> Result<OwnedTokenizer<B>, Error> {
        let file = bytes.as_ref();
        // An entry takes 8 bytes at least: a vocabulary that cannot be in the file is not worth an
        // allocation.
        if file.len() / 8 < vocab_size {
            let token = count_entries(file)?;
            return Err(Error::TokenizerTruncated { token, vocab_size, have: file.len() });
        }
        let mut index = vec_of("tokenizer index", IndexEntry::EMPTY, vocab_size)?;
        build_index(file, vocab_size, &mut index)?;
        let facts = Tokenizer::with_index(file, &index).moved_to(&[], &[]);
        Ok(OwnedTokenizer { bytes, index, facts })
    }

    /// All entries of the file.
    ///
    /// # Errors
    /// As [`count_entries`], [`build_index`], and [`Error::OutOfMemory`].
    pub fn whole(bytes: B) -> Result<OwnedTokenizer<B>, Error> {
        let vocab_size = count_entries(bytes.as_ref())?;
        OwnedTokenizer::new(bytes, vocab_size)
    }

    /// The tokenizer.
    pub fn get(&self) -> Tokenizer<'_> {
        self.facts.moved_to(self.bytes.as_ref(), &self.index)
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The tokens of a text of any length, BOS first.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let most = Tokenizer::max_tokens(text.len());
        let mut tokens = vec_of("tokens", 0, most)?;
        let n = self.get().encode(text, true, &mut vec_of("merge slots", MergeSlot::EMPTY, most)?, &mut tokens)?;
        tokens.truncate(n);
        Ok(tokens)
    }

    /// Bytes of text that a token stands for: none for BOS and for a token that is not there.
    pub fn text_bytes(&self, token: u32) -> usize {
        if token == BOS { 0 } else { self.decode(UNK, token).map_or(0, <[u8]>::len) }
    }

    /// As [`Tokenizer::decode`].
    ///
    /// # Errors
    /// [`Error::Token`].
    pub fn decode(&self, prev: u32, token: u32) -> Result<&[u8], Error> {
        self.get().decode(prev, token)
    }
}
