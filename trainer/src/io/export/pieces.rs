//! The tokens of a tokenizer.bin, as SentencePiece and other programs spell them.

use anyhow::Context;
use infer_core::tokenizer::NEVER_MERGES;
use infer_core::{BOS, EOS, OwnedTokenizer};

/// Ids of the byte tokens, where a vocabulary has them.
const BYTES: std::ops::Range<usize> = 3..259;

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A character that has no token.
    Unknown,
    /// Something that no text has: the beginning, the end, a turn of a chat.
    Control,
    /// A byte of a character that has no token.
    Byte,
    /// Text.
    Text,
}

/// A token.
pub struct Piece {
    /// Its text, with U+2581 for spaces.
    pub text: String,
    /// The higher, the sooner two pieces merge into it.
    pub score: f32,
    /// What it stands for.
    pub kind: Kind,
}

/// Reads the tokens of a tokenizer.bin.
///
/// # Errors
/// The file is damaged, or a piece is not UTF-8.
pub fn read(tokenizer_bin: &[u8], vocab_size: usize) -> anyhow::Result<Vec<Piece>> {
    let tokenizer = OwnedTokenizer::new(tokenizer_bin, vocab_size)?;
    let tokenizer = tokenizer.get();
    let is_byte = |id: usize| tokenizer.piece(id as u32) == Some(format!("<0x{:02X}>", id - BYTES.start).as_bytes());
    let has_bytes = BYTES.end <= vocab_size && BYTES.into_iter().all(is_byte);
    let piece = |id: usize| {
        let token = id as u32;
        let score = tokenizer.score(token).unwrap_or(0.0);
        let text = match token {
            BOS => "<s>".into(),
            EOS => "</s>".into(),
            _ => {
                let bytes = tokenizer.piece(token).unwrap_or_default();
                let text = std::str::from_utf8(bytes).with_context(|| format!("token {id} is not UTF-8: {bytes:?}"))?;
                text.replace(' ', "\u{2581}")
            }
        };
        let kind = match token {
            0 => Kind::Unknown,
            BOS | EOS => Kind::Control,
            _ if has_bytes && BYTES.contains(&id) => Kind::Byte,
            _ if score <= NEVER_MERGES => Kind::Control,
            _ => Kind::Text,
        };
        Ok(Piece { text, score, kind })
    };
    (0..vocab_size).map(piece).collect()
}
