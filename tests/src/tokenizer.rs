//! Tokenizer files, and a tokenizer's index and tokens in vectors of the right size.

use infer_core::tokenizer::write;
use infer_core::{IndexEntry, MergeSlot, Tokenizer, build_index, count_entries};

/// A tokenizer.bin of these pieces: the first has the best score.
pub fn file<P: AsRef<[u8]>>(max_token_length: u32, pieces: impl IntoIterator<Item = P>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, max_token_length, (0..).map(|i| -(i as f32)).zip(pieces)).unwrap();
    bytes
}

/// The index of all tokens in a tokenizer.bin.
pub fn index(bytes: &[u8]) -> Vec<IndexEntry> {
    let n = count_entries(bytes).unwrap();
    let mut index = vec![IndexEntry::EMPTY; n];
    build_index(bytes, n, &mut index).unwrap();
    index
}

/// The tokens of a text, with BOS in front if `bos`.
pub fn encode(tokenizer: &Tokenizer<'_>, text: &str, bos: bool) -> Vec<u32> {
    let most = Tokenizer::max_tokens(text.len());
    let mut tokens = vec![0; most];
    let n = tokenizer.encode(text, bos, &mut vec![MergeSlot::EMPTY; most], &mut tokens).unwrap();
    tokens.truncate(n);
    tokens
}
