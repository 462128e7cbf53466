//! Learns a vocabulary from a corpus: byte-pair encoding with byte fallback, laid out and written
//! as llama2.c does it.
//!
//! Pieces are learned as SentencePiece learns them with llama2.c's settings: text is not
//! normalised; a space belongs to the word after it; no piece mixes letters with digits,
//! punctuation or another script; each digit stands alone; line breaks and other control characters
//! are left to the byte tokens.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use unicode_script::{Script, UnicodeScript};

use crate::data::corpus::{self, Counts, Piece};
use crate::data::separator::Separator;
use crate::data::shards::{read_meta, sha256};
use crate::data::split::Files;
use crate::io::export::pieces;
use crate::io::export::tokenizer_json::tokenizer_json;
use crate::io::files::{TOKENIZER, TOKENIZER_JSON, write_whole};

/// Most characters of a piece.
const MAX_PIECE: usize = 16;
/// Most characters of a word: the training cuts longer ones.
const MAX_WORD: usize = 4 * MAX_PIECE;
/// Default share of the text whose characters get a token. The rarest characters of English stories
/// cost less as bytes than as tokens.
pub const COVERAGE: f64 = 0.9999;
/// Default limit of the text to learn from, in MB.
pub const MAX_MB: u64 = 1024;
/// Number of ids before the learned pieces: the special tokens and the bytes.
const FIRST_TEXT: usize = 3 + 256;

/// Default number of tokens.
pub const SIZE: usize = 512;

/// The words of a corpus, each with the space before it, and how often they occur.
pub struct Words {
    /// How often each word occurs.
    pub counts: HashMap<String, u64>,
    /// The stories that the words were read from.
    pub read: Counts,
}

impl Words {
    /// Counts the words of the files to train on, those outside of `valid`, up to `max_mb` MB.
    ///
    /// # Errors
    /// The corpus cannot be read, or has no stories.
    pub fn count(corpus: &[PathBuf], valid: &[PathBuf], separator: &Separator, max_mb: u64) -> anyhow::Result<Words> {
        let pieces = first_bytes(Files::find(corpus, valid)?.train, max_mb.saturating_mul(1 << 20));
        let progress = corpus::progress(pieces.iter().map(Piece::bytes).sum());
        let mut counts: HashMap<String, u64> = HashMap::new();
        let mut read = Counts::default();
        for piece in pieces {
            read += piece.read(separator, &progress, &mut |story| {
                count_words(&mut counts, story);
                Ok(())
            })?;
        }
        progress.finish_and_clear();
        ensure!(read.stories > 0, "no stories in {}: {read}", corpus::list(corpus));
        Ok(Words { counts, read })
    }

    /// Counts the words of texts.
    pub fn of<'a>(texts: impl Iterator<Item = &'a str>) -> HashMap<String, u64> {
        let mut counts = HashMap::new();
        texts.for_each(|text| count_words(&mut counts, text));
        counts
    }
}

fn count_words(counts: &mut HashMap<String, u64>, text: &str) {
    for_each_word(text, |word| match counts.get_mut(word) {
        Some(n) => *n += 1,
        None => _ = counts.insert(word.to_string(), 1),
    });
}

/// The first pieces, up to `bytes` bytes together. A plain text is cut there; a JSON file is taken
/// whole.
fn first_bytes(pieces: Vec<Piece>, bytes: u64) -> Vec<Piece> {
    let mut left = bytes;
    let mut first = Vec::new();
    for mut piece in pieces {
        if left == 0 {
            break;
        }
        if piece.is_text() {
            piece.end = piece.end.min(piece.start + left);
        }
        left = left.saturating_sub(piece.bytes());
        first.push(piece);
    }
    first
}

/// Cuts a story into words: no piece of the vocabulary reaches across a cut.
fn for_each_word(story: &str, mut each: impl FnMut(&str)) {
    let (mut word, mut chars) = (String::from(" "), 1);
    let mut last = Class::Space;
    for c in story.chars() {
        let c = if c == '\u{2581}' { ' ' } else { c };
        let class = Class::of(c, last);
        let together = match (last, class) {
            (Class::Digit, _) | (_, Class::Digit) => false,
            (Class::Space, _) => true,
            _ => last == class,
        };
        if !together || chars == MAX_WORD {
            each(&word);
            word.clear();
            chars = 0;
        }
        word.push(c);
        chars += 1;
        last = class;
    }
    each(&word);
}

/// The class of a character. Characters of different classes do not share a piece, but a space
/// belongs to the word after it.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Space,
    Digit,
    Script(Script),
}

impl Class {
    fn of(c: char, last: Class) -> Class {
        match c {
            ' ' => Class::Space,
            c if c.is_numeric() => Class::Digit,
            c => match c.script() {
                Script::Inherited => last, // such as an accent on the character before
                Script::Hiragana | Script::Katakana => Class::Script(Script::Han),
                script => Class::Script(script),
            },
        }
    }
}

/// A learned vocabulary.
pub struct Vocabulary {
    /// The pieces from id 259 on: merged pieces in the order in which they were learned, then
    /// characters, the most frequent first.
    text: Vec<String>,
    /// Number of merged pieces.
    merged: usize,
}

impl Vocabulary {
    /// Learns a vocabulary from words and their counts. The same words give the same vocabulary.
    /// Without `size` it has [`SIZE`] tokens, or as near to it as the text allows.
    ///
    /// # Errors
    /// `size` is too small for the characters or too large for the text.
    pub fn train(words: &HashMap<String, u64>, size: Option<usize>, coverage: f64) -> anyhow::Result<Vocabulary> {
        let characters = characters(words, coverage);
        let least = FIRST_TEXT + characters.len();
        let vocab_size = size.unwrap_or(SIZE.max(least));
        ensure!(
            vocab_size >= least,
            "--vocab-size {vocab_size}: give at least {least} ({FIRST_TEXT} special and byte tokens, {} characters)",
            characters.len()
        );
        // Other characters become bytes, which take no part in merges.
        let alphabet = characters.iter().copied().collect();
        let mut known: HashMap<&str, u64> = HashMap::new();
        for (word, n) in words {
            for part in word.split(|c| !characters.contains(&c)).filter(|part| !part.is_empty()) {
                *known.entry(part).or_default() += n;
            }
        }
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size - FIRST_TEXT)
            .initial_alphabet(alphabet)
            .max_token_length(Some(MAX_PIECE))
            .build();
        let mut model = BPE::default();
        let counts = known.iter().map(|(word, n)| ((*word).into(), *n)).collect();
        trainer.do_train(&counts, &mut model).map_err(|e| anyhow!("learning the vocabulary: {e}"))?;
        let mut learned: Vec<(u32, String)> = model.get_vocab().into_iter().map(|(piece, id)| (id, piece)).collect();
        let most = FIRST_TEXT + learned.len();
        ensure!(
            size.is_none() || vocab_size == most,
            "--vocab-size {vocab_size}: this text gives no more than {most} tokens"
        );
        learned.sort();
        let mut text: Vec<String> = learned.into_iter().skip(characters.len()).map(|(_, piece)| piece).collect();
        let merged = text.len();
        text.extend(characters.into_iter().map(String::from));
        Ok(Vocabulary { text, merged })
    }

    /// Number of tokens.
    pub fn size(&self) -> usize {
        FIRST_TEXT + self.text.len()
    }

    /// Describes the vocabulary in words.
    pub fn describe(&self) -> String {
        format!("{} tokens, {} of them characters", self.size(), self.text.len() - self.merged)
    }

    /// Checks that the vocabulary may be written into a folder.
    ///
    /// # Errors
    /// The folder has the vocabulary of finished shards or of a model, which would be lost.
    pub fn check_folder(&self, folder: &Path) -> anyhow::Result<()> {
        let bytes = self.tokenizer_bin()?;
        if let Some(meta) = read_meta(folder)? {
            ensure!(
                !meta.missing(folder).is_empty() || meta.tokenizer_sha256 == sha256(&bytes),
                "{} has shards that were made with another tokenizer.bin: delete the folder, or give another --out",
                folder.display()
            );
        }
        let (there, ours) = (folder.join(TOKENIZER), folder.join(TOKENIZER_JSON));
        ensure!(
            ours.exists() || !there.exists() || std::fs::read(&there)? == bytes,
            "{} is not from train-vocab, and may belong to a model beside it: give another --out",
            there.display()
        );
        Ok(())
    }

    /// Writes `tokenizer.bin` and `tokenizer.json` into a folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let bytes = self.tokenizer_bin()?;
        let json = tokenizer_json(&pieces::read(&bytes, self.size())?, &[infer_core::BOS])?;
        write_whole(&folder.join(TOKENIZER_JSON), |out| Ok(out.write_all(json.as_bytes())?))?;
        write_whole(&folder.join(TOKENIZER), |out| Ok(out.write_all(&bytes)?))
    }

    /// The contents of tokenizer.bin.
    fn tokenizer_bin(&self) -> std::io::Result<Vec<u8>> {
        let special = ["<unk>", "\n<s>\n", "\n</s>\n"].map(String::from).into_iter();
        let unscored = special.chain(byte_pieces()).map(|piece| (0.0, piece));
        let scored = self.text.iter().enumerate().map(|(rank, piece)| (-(rank as f32), piece.clone()));
        let entries: Vec<(f32, String)> = unscored.chain(scored).collect();
        let longest = entries.iter().map(|(_, piece)| piece.len()).max().unwrap_or_default();
        let mut file = Vec::new();
        infer_core::tokenizer::write(&mut file, longest as u32, entries)?;
        Ok(file)
    }
}

/// The fewest characters that make up this share of the text, the most frequent first. Control
/// characters are left out.
fn characters(words: &HashMap<String, u64>, coverage: f64) -> Vec<char> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for (word, n) in words {
        for c in word.chars().filter(|c| !c.is_control()) {
            *counts.entry(c).or_default() += n;
        }
    }
    let mut counts: Vec<(char, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|&(c, n)| (std::cmp::Reverse(n), c));
    let total: u64 = counts.iter().map(|(_, n)| n).sum();
    let mut covered = 0;
    let wanted = counts.iter().take_while(|(_, n)| {
        let more = (covered as f64) < coverage * total as f64;
        covered += n;
        more
    });
    wanted.map(|(c, _)| *c).collect()
}

fn byte_pieces() -> impl Iterator<Item = String> {
    (0..=255).map(|byte| format!("<0x{byte:02X}>"))
}
