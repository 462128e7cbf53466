//! Vocabularies and chat templates, with small ones made here.

mod hostile;
mod templates;
mod tokenizers;

use ::tests::tokenizer::byte_level_json as smol;
use infer_core::Config;
use infer_core::format::{Header, Version};
use infer_text::TextTokenizer;
use serde_json::Value;

/// The header of a model of `vocab_size` tokens.
fn header(vocab_size: usize) -> Header {
    Header::new(Version::V1, Config::new(8, 8, 1, 2, vocab_size, 64))
}

fn from_json(file: &Value, vocab_size: usize) -> anyhow::Result<TextTokenizer> {
    TextTokenizer::from_json(&serde_json::to_vec(file).unwrap(), &header(vocab_size))
}

/// A tokenizer.bin with byte tokens, some pieces, and added tokens behind them.
fn bin() -> Vec<u8> {
    let mut entries: Vec<(f32, String)> = ["<unk>", "\n<s>\n", "\n</s>\n"].map(|piece| (0.0, piece.into())).to_vec();
    entries.extend((0..=255).map(|byte| (0.0, format!("<0x{byte:02X}>"))));
    let pieces = [" ", "a", "b", " a", "<", "|", "x", ">", "<|", "|>", "[", "]"];
    entries.extend(pieces.iter().enumerate().map(|(i, piece)| (-(i as f32), piece.to_string())));
    entries.extend(["<|x|>", "<|im_start|>", "<|im_end|>"].map(|name| (-1e11, name.into())));
    let mut file = Vec::new();
    infer_core::tokenizer::write(&mut file, 12, entries).unwrap();
    file
}

/// All bytes of these tokens.
fn decode(tokenizer: &TextTokenizer, tokens: &[u32]) -> Vec<u8> {
    let mut previous = tokenizer.bos().first().copied().unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    for &token in tokens {
        bytes.extend(&*tokenizer.decode(previous, token));
        previous = token;
    }
    bytes
}
