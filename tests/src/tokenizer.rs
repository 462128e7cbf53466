//! Tokenizer files of pieces.

use infer_core::tokenizer::write;

/// A tokenizer.bin of these pieces: the first has the best score.
pub fn file<P: AsRef<[u8]>>(max_token_length: u32, pieces: impl IntoIterator<Item = P>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, max_token_length, (0..).map(|i| -(i as f32)).zip(pieces)).unwrap();
    bytes
}
