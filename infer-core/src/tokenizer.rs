//! tokenizer.bin: from text to tokens (byte-pair encoding) and back.
//!
//! The file has neither index nor count, so the caller lends an index: the place of every entry,
//! and a hash table of the pieces that text can become. It can be built at compile time and lie in
//! flash.

mod index;
mod merge;
#[cfg(feature = "std")]
mod write;

use crate::error::Error;
use index::{FIRST_BYTE, NONE, Pieces};
use merge::{Output, Word, merge};

pub use index::{IndexEntry, NEVER_MERGES, build_index, count_entries};
pub use merge::MergeSlot;
#[cfg(feature = "std")]
pub use write::write;

/// Beginning of a sequence.
pub const BOS: u32 = 1;
/// End of a sequence.
pub const EOS: u32 = 2;
/// Unknown piece.
pub const UNK: u32 = 0;

/// A vocabulary borrowed from the bytes of a tokenizer.bin.
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer<'t> {
    pieces: Pieces<'t>,
    splits: bool,
    file_bytes: usize,
}

impl<'t> Tokenizer<'t> {
    /// Checks the file and builds its index in the caller's slice of at least `vocab_size`
    /// elements. Bytes after the last entry are ignored.
    ///
    /// # Errors
    /// As [`build_index`].
    pub fn new(bytes: &'t [u8], vocab_size: usize, index: &'t mut [IndexEntry]) -> Result<Tokenizer<'t>, Error> {
        build_index(bytes, vocab_size, index)?;
        Ok(Tokenizer::with_index(bytes, index.get(..vocab_size).unwrap_or(&[])))
    }

    /// Uses an index that [`build_index`] made from the same bytes, one element per token. An index
    /// of other bytes gives wrong tokens, but no panic.
    pub fn with_index(bytes: &'t [u8], index: &'t [IndexEntry]) -> Tokenizer<'t> {
        let pieces = Pieces::new(bytes, index);
        let all = || (0..index.len() as u32).filter_map(|token| pieces.get(token));
        let splits = !all().any(|piece| piece.windows(2).any(|pair| matches!(pair, [c, b' '] if *c != b' ')));
        Tokenizer { pieces, splits, file_bytes: pieces.file_bytes() }
    }

    /// The same tokenizer, whose bytes and index now lie elsewhere.
    #[cfg(feature = "std")]
    pub(crate) fn moved_to<'a>(&self, bytes: &'a [u8], index: &'a [IndexEntry]) -> Tokenizer<'a> {
        Tokenizer { pieces: Pieces { bytes, index, ..self.pieces }, ..*self }
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.pieces.index.len()
    }

    /// Bytes of the file up to the end of the last entry.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// The piece of a token as it stands in the file: text, `<0x0A>` for a byte token, a name for a
    /// control token.
    pub fn piece(&self, token: u32) -> Option<&'t [u8]> {
        self.pieces.get(token)
    }

    /// The score of a token as it stands in the file: pairs become the piece with the highest one
    /// first, and never a piece with [`NEVER_MERGES`] or less.
    pub fn score(&self, token: u32) -> Option<f32> {
        self.pieces.get(token).map(|_| self.pieces.score(token))
    }

    /// Raw bytes of `token` when it follows `prev`: right after BOS one leading space is dropped.
    /// The bytes of one token need not be whole characters.
    ///
    /// # Errors
    /// [`Error::Token`].
    pub fn decode(&self, prev: u32, token: u32) -> Result<&'t [u8], Error> {
        let piece = self.piece(token).ok_or(Error::Token { token, vocab_size: self.vocab_size() })?;
        if let Some(byte) = token.checked_sub(FIRST_BYTE)
            && self.pieces.byte_tokens
            && let Some(byte) = BYTES.get(byte as usize..=byte as usize)
        {
            return Ok(byte);
        }
        match piece {
            [b' ', rest @ ..] if prev == BOS => Ok(rest),
            _ => Ok(piece),
        }
    }

    /// The largest number of tokens, and of scratch elements, that a text of `bytes` bytes takes:
    /// one per byte, BOS and the space in front.
    pub const fn max_tokens(bytes: usize) -> usize {
        bytes.saturating_add(2)
    }

    /// Encodes `text`, with BOS in front if `bos`, and returns the number of tokens written to
    /// `tokens`. A space is put in front of a text that is not empty.
    ///
    /// [`Tokenizer::max_tokens`] elements of scratch and tokens are always enough. Where no piece
    /// has a space after another character, which is the rule, scratch for the longest word is.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`].
    pub fn encode(&self, text: &str, bos: bool, scratch: &mut [MergeSlot], tokens: &mut [u32]) -> Result<usize, Error> {
        let (need, have) = (Tokenizer::max_tokens(text.len()), tokens.len());
        let mut out = Output { tokens, len: 0, error: Error::BufferTooSmall { buffer: "tokens", need, have } };
        if bos {
            out.push(BOS)?;
        }
        let mut word = Word { slots: scratch, len: 0, need };
        let mut prev = ' ';
        let mut unknown = false;
        let prefix = if text.is_empty() { "" } else { " " };
        for c in prefix.chars().chain(text.chars()) {
            let c = if c == '\u{2581}' { ' ' } else { c };
            if self.splits && c == ' ' && prev != ' ' {
                merge(&self.pieces, &mut word, &mut out)?;
            }
            prev = c;
            let mut utf8 = [0; 4];
            let utf8 = c.encode_utf8(&mut utf8).as_bytes();
            let known = self.pieces.lookup(utf8, &[]);
            if known != NONE {
                word.push(known)?;
            } else if self.pieces.byte_tokens {
                utf8.iter().try_for_each(|byte| word.push(u32::from(*byte) + FIRST_BYTE))?;
            } else if !unknown {
                word.push(UNK)?; // one for a run of unknown characters
            }
            unknown = known == NONE;
        }
        merge(&self.pieces, &mut word, &mut out)?;
        Ok(out.len)
    }
}

/// All byte values, for decoding byte tokens to slices.
static BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut i = 0;
    while i < 256 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};
