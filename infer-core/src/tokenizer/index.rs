//! The entries of a tokenizer.bin, and a hash table of the pieces that text can become.

use crate::error::Error;
use crate::format::read_i32;

/// Token of the byte 0, in vocabularies that have byte tokens.
pub(super) const FIRST_BYTE: u32 = 3;
/// Length of the field before the first entry (max_token_length, not used: entries carry their own
/// length).
const FILE_HEADER: usize = 4;
/// Score and length before each piece.
const ENTRY_HEADER: usize = 8;
/// Pieces with this score or less never come from a merge, as special tokens.
pub const NEVER_MERGES: f32 = -1e10;
/// End of a chain or list; no merge.
pub(super) const NONE: u32 = u32::MAX;
const HASH_SEED: u32 = 0x811c_9dc5;

/// One token's part of the index, and one bucket of the hash table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IndexEntry {
    /// Byte offset of the token's entry in the file.
    offset: u32,
    /// First token of this bucket.
    head: u32,
    /// Next token in the same bucket.
    next: u32,
}

impl IndexEntry {
    /// An element to make a slice of: building the index overwrites it.
    pub const EMPTY: IndexEntry = IndexEntry { offset: 0, head: NONE, next: NONE };
}

/// Checks the file and fills the index: at least `vocab_size` elements. Usable at compile time.
///
/// # Errors
/// [`Error::BufferTooSmall`], [`Error::TokenizerTruncated`], [`Error::TokenizerEntry`], and
/// [`Error::TooLarge`] for a file of 4 GB or more.
pub const fn build_index(bytes: &[u8], vocab_size: usize, index: &mut [IndexEntry]) -> Result<(), Error> {
    let have = index.len();
    let Some((index, _)) = index.split_at_mut_checked(vocab_size) else {
        return Err(Error::BufferTooSmall { buffer: "tokenizer index", need: vocab_size, have });
    };
    if bytes.len() >= NONE as usize || vocab_size >= NONE as usize {
        return Err(Error::TooLarge);
    }
    let mut offset = FILE_HEADER;
    let mut token = 0;
    while token < vocab_size {
        index[token] = IndexEntry { offset: offset as u32, head: NONE, next: NONE };
        offset = match check_entry(bytes, offset, token, vocab_size) {
            Ok(end) => end,
            Err(e) => return Err(e),
        };
        token += 1;
    }
    // From the last token to the first, so that the lowest of equal pieces is found.
    let first = first_text_token(bytes, index) as usize;
    while token > first && token <= vocab_size {
        token -= 1; // the second condition always holds, and spares a bounds check
        let bucket = bucket(hash(HASH_SEED, piece_at(bytes, index[token].offset as usize)), vocab_size);
        if bucket < vocab_size {
            index[token].next = index[bucket].head;
            index[bucket].head = token as u32;
        }
    }
    Ok(())
}

/// Number of entries of a file that holds nothing else: the size of its vocabulary.
///
/// # Errors
/// [`Error::TokenizerTruncated`] or [`Error::TokenizerEntry`] for the first entry that is not
/// whole.
pub fn count_entries(bytes: &[u8]) -> Result<usize, Error> {
    let (mut offset, mut count) = (FILE_HEADER, 0);
    while offset != bytes.len() {
        offset = check_entry(bytes, offset, count, count + 1)?;
        count += 1;
    }
    Ok(count)
}

/// The entries of a file, found by token or by text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces<'t> {
    pub bytes: &'t [u8],
    pub index: &'t [IndexEntry],
    /// Tokens 3 to 258 are the byte tokens.
    pub byte_tokens: bool,
}

impl<'t> Pieces<'t> {
    pub fn new(bytes: &'t [u8], index: &'t [IndexEntry]) -> Pieces<'t> {
        Pieces { bytes, index, byte_tokens: first_text_token(bytes, index) > FIRST_BYTE }
    }

    pub fn get(&self, token: u32) -> Option<&'t [u8]> {
        let entry = self.index.get(token as usize)?;
        Some(piece_at(self.bytes, entry.offset as usize))
    }

    /// Bytes of the file up to the end of the last entry.
    pub fn file_bytes(&self) -> usize {
        match self.index.last().map(|last| last.offset as usize) {
            Some(last) => last.saturating_add(ENTRY_HEADER + piece_at(self.bytes, last).len()),
            None => FILE_HEADER.min(self.bytes.len()),
        }
    }

    /// The token whose piece is the pieces of two neighbours together, or `NONE`. Control and byte
    /// tokens never merge.
    pub fn pair(&self, left: u32, right: u32) -> u32 {
        let first = if self.byte_tokens { FIRST_BYTE + 256 } else { FIRST_BYTE };
        if left < first || right < first {
            return NONE;
        }
        match (self.get(left), self.get(right)) {
            (Some(left), Some(right)) => match self.lookup(left, right) {
                token if self.score(token) > NEVER_MERGES => token,
                _ => NONE,
            },
            _ => NONE,
        }
    }

    /// The token whose piece is `a` followed by `b`, or `NONE`.
    pub fn lookup(&self, a: &[u8], b: &[u8]) -> u32 {
        let bucket = bucket(hash(hash(HASH_SEED, a), b), self.index.len());
        let mut token = self.index.get(bucket).map_or(NONE, |entry| entry.head);
        while let Some(entry) = self.index.get(token as usize) {
            let piece = piece_at(self.bytes, entry.offset as usize);
            if piece.len() == a.len() + b.len() && piece.starts_with(a) && piece.ends_with(b) {
                return token;
            }
            // Chains run upwards; anything else is a foreign index, and could be a circle.
            token = if entry.next > token { entry.next } else { NONE };
        }
        NONE
    }

    pub fn score(&self, token: u32) -> f32 {
        match self.index.get(token as usize) {
            Some(entry) => score_at(self.bytes, entry.offset as usize),
            None => f32::NEG_INFINITY,
        }
    }
}

/// FNV-1a, continued from `seed`.
const fn hash(seed: u32, mut bytes: &[u8]) -> u32 {
    let mut hash = seed;
    while let [byte, rest @ ..] = bytes {
        hash = (hash ^ *byte as u32).wrapping_mul(0x0100_0193);
        bytes = rest;
    }
    hash
}

/// Maps a hash to `0..n` without a division: the high half of a product.
const fn bucket(hash: u32, n: usize) -> usize {
    ((hash.wrapping_mul(0x9e37_79b1) as u64 * n as u64) >> 32) as usize
}

/// Checks the entry at `offset` and returns its end.
const fn check_entry(bytes: &[u8], offset: usize, token: usize, vocab_size: usize) -> Result<usize, Error> {
    let truncated = Error::TokenizerTruncated { token, vocab_size, have: bytes.len() };
    let Some((_, entry)) = bytes.split_at_checked(offset) else { return Err(truncated) };
    let Some(length) = read_i32(entry, 4) else { return Err(truncated) };
    if length < 0 {
        return Err(Error::TokenizerEntry { token, rule: "its length must not be negative" });
    }
    if score_at(bytes, offset).is_nan() {
        return Err(Error::TokenizerEntry { token, rule: "its score must be a number" });
    }
    if entry.len() - ENTRY_HEADER < length as usize {
        return Err(truncated);
    }
    Ok(offset + ENTRY_HEADER + length as usize)
}

/// The piece of the entry at `offset`; empty if there is no entry.
const fn piece_at(bytes: &[u8], offset: usize) -> &[u8] {
    let Some((_, entry)) = bytes.split_at_checked(offset) else { return &[] };
    let (Some(length), Some((_, rest))) = (read_i32(entry, 4), entry.split_at_checked(ENTRY_HEADER)) else {
        return &[];
    };
    match rest.split_at_checked(length as usize) {
        Some((piece, _)) => piece,
        None => &[],
    }
}

const fn score_at(bytes: &[u8], offset: usize) -> f32 {
    match read_i32(bytes, offset) {
        Some(bits) => f32::from_bits(bits as u32),
        None => f32::NEG_INFINITY,
    }
}

/// The first token that text can become: 259 when tokens 3 to 258 are the byte tokens, else 3.
const fn first_text_token(bytes: &[u8], index: &[IndexEntry]) -> u32 {
    let mut byte = 0;
    while byte < 256 {
        let token = byte + FIRST_BYTE as usize;
        if token >= index.len() || !is_byte_piece(piece_at(bytes, index[token].offset as usize), byte as u8) {
            return FIRST_BYTE;
        }
        byte += 1;
    }
    FIRST_BYTE + 256
}

const fn is_byte_piece(piece: &[u8], byte: u8) -> bool {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    let (high, low) = (HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]);
    matches!(piece, [b'<', b'0', b'x', h, l, b'>'] if *h == high && *l == low)
}
