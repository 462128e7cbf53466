//! tokenizer.bin: from text to tokens (byte-pair encoding) and back.
//!
//! The file has neither index nor count, so the caller lends an index: the place of every entry,
//! and a hash table of the pieces that text can become. It can be built at compile time and lie in
//! flash.

#[cfg(feature = "std")]
mod write;

use crate::error::Error;
use crate::format::read_i32;
#[cfg(feature = "std")]
pub use write::write;

/// Beginning of a sequence.
pub const BOS: u32 = 1;
/// End of a sequence.
pub const EOS: u32 = 2;
/// Unknown piece.
pub const UNK: u32 = 0;
/// Token of the byte 0, in vocabularies that have byte tokens.
const FIRST_BYTE: u32 = 3;
/// Length of the field before the first entry (max_token_length, not used: entries carry their own
/// length).
const FILE_HEADER: usize = 4;
/// Score and length before each piece.
const ENTRY_HEADER: usize = 8;
/// Pairs at or below this score never merge.
const LOWEST_SCORE: f32 = -1e10;
/// End of a chain or list; no merge.
const NONE: u32 = u32::MAX;

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
    /// Content does not matter before the index is built.
    pub const EMPTY: IndexEntry = IndexEntry { offset: 0, head: NONE, next: NONE };
}

/// Scratch of encoding: one unit of text (a character, or a byte of an unknown one) that merges
/// with its neighbours.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MergeSlot {
    /// Current token; the merged one if it absorbed its right neighbours.
    token: u32,
    /// Living neighbours.
    prev: u32,
    next: u32,
    /// What the token becomes together with its right neighbour.
    merged: u32,
    /// Node of the tournament over all slots: the slot with the best merge below it.
    winner: u32,
}

impl MergeSlot {
    /// Content does not matter.
    pub const EMPTY: MergeSlot = MergeSlot { token: 0, prev: NONE, next: NONE, merged: NONE, winner: 0 };
}

/// A vocabulary borrowed from the bytes of a tokenizer.bin.
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer<'t> {
    bytes: &'t [u8],
    index: &'t [IndexEntry],
    byte_tokens: bool,
    splits: bool,
    file_bytes: usize,
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
        let byte_tokens = first_text_token(bytes, index) > FIRST_BYTE;
        let pieces = || index.iter().map(|entry| piece_at(bytes, entry.offset as usize));
        let splits = !pieces().any(|piece| piece.windows(2).any(|pair| matches!(pair, [c, b' '] if *c != b' ')));
        let file_bytes = match index.last() {
            Some(last) => {
                (last.offset as usize).saturating_add(ENTRY_HEADER + piece_at(bytes, last.offset as usize).len())
            }
            None => FILE_HEADER.min(bytes.len()),
        };
        Tokenizer { bytes, index, byte_tokens, splits, file_bytes }
    }

    /// The same tokenizer, whose bytes and index now lie elsewhere.
    #[cfg(feature = "std")]
    pub(crate) fn moved_to<'a>(&self, bytes: &'a [u8], index: &'a [IndexEntry]) -> Tokenizer<'a> {
        Tokenizer { bytes, index, ..*self }
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.index.len()
    }

    /// Bytes of the file up to the end of the last entry.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// The piece of a token as it stands in the file: text, `<0x0A>` for a byte token, a name for a
    /// control token.
    pub fn piece(&self, token: u32) -> Option<&'t [u8]> {
        let entry = self.index.get(token as usize)?;
        Some(piece_at(self.bytes, entry.offset as usize))
    }

    /// Raw bytes of `token` when it follows `prev`: right after BOS one leading space is dropped.
    /// The bytes of one token need not be whole characters.
    ///
    /// # Errors
    /// [`Error::Token`].
    pub fn decode(&self, prev: u32, token: u32) -> Result<&'t [u8], Error> {
        let piece = self.piece(token).ok_or(Error::Token { token, vocab_size: self.vocab_size() })?;
        if let Some(byte) = token.checked_sub(FIRST_BYTE)
            && self.byte_tokens
            && let Some(byte) = BYTES.get(byte as usize..=byte as usize)
        {
            return Ok(byte);
        }
        match piece {
            [b' ', rest @ ..] if prev == BOS => Ok(rest),
            _ => Ok(piece),
        }
    }

    /// Most tokens, and most scratch, that a text of `bytes` bytes can take: one per byte, BOS and
    /// the space in front.
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
                self.merge(&mut word, &mut out)?;
            }
            prev = c;
            let mut utf8 = [0; 4];
            let utf8 = c.encode_utf8(&mut utf8).as_bytes();
            let known = self.lookup(utf8, &[]);
            if known != NONE {
                word.push(known)?;
            } else if self.byte_tokens {
                utf8.iter().try_for_each(|byte| word.push(u32::from(*byte) + FIRST_BYTE))?;
            } else if !unknown {
                word.push(UNK)?; // one for a run of unknown characters
            }
            unknown = known == NONE;
        }
        self.merge(&mut word, &mut out)?;
        Ok(out.len)
    }

    /// Merges the pair with the best score, the leftmost of equals, until no pair is a piece; then
    /// moves the word's tokens to the output. O(n log n): a tournament over the slots names the
    /// best pair.
    fn merge(&self, word: &mut Word<'_>, out: &mut Output<'_>) -> Result<(), Error> {
        let n = core::mem::take(&mut word.len);
        let Some(slots) = word.slots.get_mut(..n) else { return Ok(()) };
        let mut right = NONE;
        for (i, slot) in slots.iter_mut().enumerate().rev() {
            slot.prev = (i as u32).wrapping_sub(1); // NONE for the first
            slot.next = if i + 1 < n { i as u32 + 1 } else { NONE };
            slot.merged = self.pair(slot.token, right);
            right = slot.token;
        }
        for node in (1..n).rev() {
            self.play(slots, node);
        }
        // The final winner stands in node 1; a single slot has no match to play, and no pair.
        while let Some(left) = slots.get(1).map(|root| root.winner)
            && let Some(&MergeSlot { merged, prev, next, .. }) = slots.get(left as usize)
            && merged != NONE
        {
            let after = slots.get(next as usize).copied().unwrap_or(MergeSlot::EMPTY);
            let after_token = slots.get(after.next as usize).map_or(NONE, |slot| slot.token);
            if let Some(slot) = slots.get_mut(left as usize) {
                (slot.token, slot.next, slot.merged) = (merged, after.next, self.pair(merged, after_token));
            }
            if let Some(slot) = slots.get_mut(next as usize) {
                slot.merged = NONE;
            }
            if let Some(slot) = slots.get_mut(after.next as usize) {
                slot.prev = left;
            }
            if let Some(slot) = slots.get_mut(prev as usize) {
                slot.merged = self.pair(slot.token, merged);
            }
            for changed in [left, next, prev] {
                self.replay(slots, changed);
            }
        }
        let mut i = 0;
        while let Some(slot) = slots.get(i as usize) {
            out.push(slot.token)?;
            i = slot.next;
        }
        Ok(())
    }

    /// The token of two neighbours' text together, or `NONE`. Control and byte tokens never merge.
    fn pair(&self, left: u32, right: u32) -> u32 {
        let first = if self.byte_tokens { FIRST_BYTE + 256 } else { FIRST_BYTE };
        if left < first || right < first {
            return NONE;
        }
        match (self.piece(left), self.piece(right)) {
            (Some(left), Some(right)) => match self.lookup(left, right) {
                token if self.score(token) > LOWEST_SCORE => token,
                _ => NONE,
            },
            _ => NONE,
        }
    }

    /// The token whose piece is `a` followed by `b`, or `NONE`.
    fn lookup(&self, a: &[u8], b: &[u8]) -> u32 {
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

    fn score(&self, token: u32) -> f32 {
        match self.index.get(token as usize) {
            Some(entry) => score_at(self.bytes, entry.offset as usize),
            None => f32::NEG_INFINITY,
        }
    }

    /// Plays the matches above a slot again after its merge has changed.
    fn replay(&self, slots: &mut [MergeSlot], slot: u32) {
        let mut node = (slot as usize).saturating_add(slots.len()) / 2;
        while node > 0 && node < slots.len() {
            self.play(slots, node);
            node /= 2;
        }
    }

    /// One match: the better of the winners of nodes 2·node and 2·node + 1. Nodes from n on are the
    /// slots themselves.
    fn play(&self, slots: &mut [MergeSlot], node: usize) {
        let n = slots.len();
        let contender = |node: usize| {
            let slot = if node >= n { (node - n) as u32 } else { slots.get(node).map_or(0, |node| node.winner) };
            let score = slots.get(slot as usize).map_or(f32::NEG_INFINITY, |slot| self.score(slot.merged));
            (slot, score)
        };
        let (a, b) = (contender(2 * node), contender(2 * node + 1));
        let a_wins = a.1 > b.1 || (a.1 == b.1 && a.0 < b.0);
        if let Some(node) = slots.get_mut(node) {
            node.winner = if a_wins { a.0 } else { b.0 };
        }
    }
}

/// The caller's token buffer.
struct Output<'a> {
    tokens: &'a mut [u32],
    len: usize,
    error: Error,
}

impl Output<'_> {
    fn push(&mut self, token: u32) -> Result<(), Error> {
        *self.tokens.get_mut(self.len).ok_or(self.error)? = token;
        self.len += 1;
        Ok(())
    }
}

/// The stretch of text that is being collected, in the caller's scratch.
struct Word<'a> {
    slots: &'a mut [MergeSlot],
    len: usize,
    need: usize,
}

impl Word<'_> {
    fn push(&mut self, token: u32) -> Result<(), Error> {
        let have = self.slots.len();
        let error = Error::BufferTooSmall { buffer: "merge scratch", need: self.need, have };
        *self.slots.get_mut(self.len).ok_or(error)? = MergeSlot { token, ..MergeSlot::EMPTY };
        self.len += 1;
        Ok(())
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

const HASH_SEED: u32 = 0x811c_9dc5;

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

/// End of the entry at `offset`, if it is whole and sane.
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

/// The text of the entry at `offset`; empty if there is none.
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
