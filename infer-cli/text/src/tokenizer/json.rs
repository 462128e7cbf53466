//! tokenizer.json, read by the tokenizers crate.
//!
//! Added tokens are kept from that crate, which finds them in all texts: they are found by
//! [`Matcher`] where the caller allows it. The bytes of each token are laid out once, since the
//! decoders of that crate give whole characters only.

mod check;

use std::borrow::Cow;

use anyhow::{anyhow, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::added::{Added, Matcher, Part};
use check::Alphabet;

/// Bytes of the largest file that is read: Gemma's, the largest vocabulary in use, has 33.4 MB.
pub const MOST_BYTES: usize = 1 << 25;
/// Texts that still become added tokens after so many cuts are refused.
const MOST_CUTS: usize = 4;

/// The parts of the file that this reads. What it adds in front of texts and where it cuts them is
/// not wanted here.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: ModelWrapper,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

/// A tokenizer.json.
#[derive(Debug)]
pub struct JsonVocabulary {
    tokenizer: Tokenizer,
    /// Added tokens that any text may become: runs of white space.
    spaces: Matcher,
    /// For each token, whether no text may become it.
    barred: Vec<bool>,
    /// The bytes of all tokens, one behind the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    alphabet: Alphabet,
}

impl JsonVocabulary {
    /// The vocabulary, and its added tokens, for a model of `vocab_size` tokens; by default as many
    /// as the file has.
    pub fn new(file: &[u8], vocab_size: Option<usize>) -> anyhow::Result<(JsonVocabulary, Vec<Added>)> {
        ensure!(file.len() <= MOST_BYTES, "it has {} bytes: a tokenizer has at most {MOST_BYTES}", file.len());
        let file: File = serde_json::from_slice(file).map_err(|e| anyhow!("it is no tokenizer.json: {e}"))?;
        let ModelWrapper::BPE(mut model) = file.model else { bail!("its model is not BPE, byte-pair encoding") };
        model.dropout = None; // it is for training
        let vocab_size = match vocab_size {
            Some(vocab_size) => vocab_size,
            None => count(&model, &file.added_tokens)?,
        };
        let alphabet = check::alphabet(&file.decoder, &file.pre_tokenizer)?;
        check::parts(&file.normalizer, &file.pre_tokenizer)?;

        let mut tokenizer = Tokenizer::new(model);
        let normalizer: Option<NormalizerWrapper> = part("normalizer", file.normalizer)?;
        tokenizer.with_normalizer(normalizer).map_err(|e| anyhow!("normalizer: {e}"))?;
        tokenizer.with_pre_tokenizer(part::<PreTokenizerWrapper>("pre_tokenizer", file.pre_tokenizer)?);
        // Tokens beyond the model's have no embedding, such as a <pad> that somebody added.
        let known = |added: &AddedToken| (added.id as usize) < vocab_size && added.content.chars().nth(1).is_some();
        let (spaces, added): (Vec<_>, Vec<_>) =
            file.added_tokens.into_iter().filter(known).partition(|added| !added.special && is_space(&added.content));

        let mut vocabulary = JsonVocabulary {
            tokenizer,
            spaces: Matcher::new(spaces.into_iter().map(Added::from).collect())?,
            barred: vec![false; vocab_size],
            bytes: Vec::new(),
            ends: Vec::new(),
            alphabet,
        };
        let added: Vec<Added> = added.into_iter().map(Added::from).collect();
        for added in &added {
            vocabulary.barred[added.token as usize] = true;
        }
        vocabulary.lay_out(&added, vocab_size)?;
        Ok((vocabulary, added))
    }

    /// Writes down the bytes of all tokens.
    fn lay_out(&mut self, added: &[Added], vocab_size: usize) -> anyhow::Result<()> {
        let mut pieces = vec![None; vocab_size];
        for (piece, token) in self.tokenizer.get_model().get_vocab() {
            let Some(place) = pieces.get_mut(token as usize) else {
                bail!(
                    "the token {piece:?} has the id {token}, and the model {vocab_size} tokens: it belongs to another"
                );
            };
            *place = Some(self.alphabet.bytes(&piece));
        }
        for added in added.iter().chain(self.spaces.tokens()) {
            pieces[added.token as usize] = Some(added.name.clone().into_bytes());
        }
        for piece in pieces {
            self.bytes.extend(piece.unwrap_or_default());
            self.ends.push(self.bytes.len() as u32);
        }
        Ok(())
    }

    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Whether a space is put in front of a text.
    pub fn adds_space(&self) -> bool {
        self.alphabet == Alphabet::SentencePiece
    }

    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for part in self.spaces.split(text) {
            match part {
                Part::Token(token) => tokens.push(token),
                Part::Text(text) => self.encode_stretch(text, MOST_CUTS, &mut tokens)?,
            }
        }
        Ok(tokens)
    }

    /// Encodes a text. Where it becomes an added token, whose name may be a piece like any other,
    /// the text is cut within the name.
    fn encode_stretch(&self, text: &str, cuts_left: usize, tokens: &mut Vec<u32>) -> anyhow::Result<()> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| anyhow!("tokenizer.json: {e}"))?;
        let barred = |token: &u32| self.barred.get(*token as usize) != Some(&false);
        if !encoding.get_ids().iter().any(barred) {
            tokens.extend(encoding.get_ids());
            return Ok(());
        }
        ensure!(cuts_left > 0, "tokenizer.json makes added tokens of the text {:?}", excerpt(text));
        let mut from = 0;
        for (token, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let Some(within) = text.get(start.max(from)..end).filter(|_| barred(token)) else { continue };
            if let Some((_, second)) = within.char_indices().nth(1).map(|(at, c)| (c, at)) {
                let cut = start.max(from) + second;
                self.encode_stretch(&text[from..cut], cuts_left - 1, tokens)?;
                from = cut;
            }
        }
        self.encode_stretch(&text[from..], cuts_left - 1, tokens)
    }

    pub fn decode(&self, after_special: bool, token: u32) -> Cow<'_, [u8]> {
        let token = token as usize;
        let start = token.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        let bytes = match (start, self.ends.get(token)) {
            (Some(start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        };
        match bytes {
            [b' ', rest @ ..] if after_special && self.alphabet == Alphabet::SentencePiece => rest.into(),
            _ => bytes.into(),
        }
    }

    pub fn token(&self, piece: &str) -> Option<u32> {
        let known = |token: &u32| (*token as usize) < self.vocab_size();
        self.spaces.named(piece).or_else(|| self.tokenizer.get_model().token_to_id(piece)).filter(known)
    }
}

impl From<AddedToken> for Added {
    fn from(token: AddedToken) -> Added {
        Added { token: token.id, name: token.content, lstrip: token.lstrip, rstrip: token.rstrip }
    }
}

/// Number of tokens of a whole file.
fn count(model: &BPE, added: &[AddedToken]) -> anyhow::Result<usize> {
    let pieces = model.get_vocab();
    let last = pieces.values().copied().chain(added.iter().map(|added| added.id)).max();
    let count = last.map_or(0, |last| last as usize + 1);
    let there = pieces.len() + added.len();
    ensure!(count <= 2 * there + 1024, "it has {there} tokens, and the last has the id {}", count - 1);
    Ok(count)
}

fn part<T: DeserializeOwned>(name: &str, part: Value) -> anyhow::Result<Option<T>> {
    serde_json::from_value(part).map_err(|e| anyhow!("its {name}: {e}"))
}

fn is_space(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c == '\u{2581}')
}

fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}
