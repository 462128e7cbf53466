//! Texts to tokens and back, for both kinds of vocabularies.

mod bin;
mod json;

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Context, bail};
use infer_core::format::Header;
use infer_core::{BOS, EOS, UNK};

use crate::added::{Added, Matcher, Part};
use bin::BinVocabulary;
use json::JsonVocabulary;

/// The file name of a vocabulary of llama2.c.
pub const TOKENIZER_BIN: &str = "tokenizer.bin";
/// The file name of a vocabulary of Hugging Face.
pub const TOKENIZER_JSON: &str = "tokenizer.json";

/// What the name of a special or added token in a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Letters: the text comes from a person or a file.
    AsText,
    /// The token: the text comes from a template or a trusted program.
    Match,
}

/// A vocabulary, with the tokens that the model's header puts in front of texts and that end them.
#[derive(Debug)]
pub struct TextTokenizer {
    vocabulary: Vocabulary,
    /// The tokens that no text becomes by itself.
    added: Matcher,
    bos: Vec<u32>,
    eos: Vec<u32>,
}

#[derive(Debug)]
enum Vocabulary {
    Bin(BinVocabulary),
    Json(Box<JsonVocabulary>),
}

impl TextTokenizer {
    /// Reads a tokenizer.bin, of which the model takes the first `vocab_size` entries.
    ///
    /// # Errors
    /// The file is damaged or has fewer entries.
    pub fn from_bin(bytes: Vec<u8>, header: &Header) -> anyhow::Result<TextTokenizer> {
        let (vocabulary, added) = BinVocabulary::new(bytes, Some(header.config.vocab_size))?;
        TextTokenizer::new(Vocabulary::Bin(vocabulary), added, header.tokens.bos(), header.tokens.eos())
    }

    /// Reads a tokenizer.json: byte-pair encoding, on bytes or as SentencePiece has it.
    ///
    /// # Errors
    /// The file is damaged, has a part that this does not know, or tokens that the model lacks.
    pub fn from_json(bytes: &[u8], header: &Header) -> anyhow::Result<TextTokenizer> {
        let (vocabulary, added) = JsonVocabulary::new(bytes, Some(header.config.vocab_size))?;
        TextTokenizer::new(Vocabulary::Json(Box::new(vocabulary)), added, header.tokens.bos(), header.tokens.eos())
    }

    /// Reads a tokenizer.bin without a model: all its entries, with llama2.c's BOS and EOS.
    ///
    /// # Errors
    /// As [`from_bin`](TextTokenizer::from_bin).
    pub fn whole_bin(bytes: Vec<u8>) -> anyhow::Result<TextTokenizer> {
        let (vocabulary, added) = BinVocabulary::new(bytes, None)?;
        TextTokenizer::new(Vocabulary::Bin(vocabulary), added, &[BOS], &[EOS])
    }

    /// Reads a tokenizer.json without a model. What stands in front of texts is not known then.
    ///
    /// # Errors
    /// As [`from_json`](TextTokenizer::from_json).
    pub fn whole_json(bytes: &[u8]) -> anyhow::Result<TextTokenizer> {
        let (vocabulary, added) = JsonVocabulary::new(bytes, None)?;
        TextTokenizer::new(Vocabulary::Json(Box::new(vocabulary)), added, &[], &[])
    }

    fn new(vocabulary: Vocabulary, added: Vec<Added>, bos: &[u32], eos: &[u32]) -> anyhow::Result<TextTokenizer> {
        Ok(TextTokenizer { vocabulary, added: Matcher::new(added)?, bos: bos.into(), eos: eos.into() })
    }

    /// Reads the vocabulary beside a model: tokenizer.bin, or else tokenizer.json.
    ///
    /// # Errors
    /// There is none, or as [`from_bin`](TextTokenizer::from_bin) and
    /// [`from_json`](TextTokenizer::from_json).
    pub fn beside(model: &Path, header: &Header) -> anyhow::Result<TextTokenizer> {
        let (bin, json) = (model.with_file_name(TOKENIZER_BIN), model.with_file_name(TOKENIZER_JSON));
        let name = |path: &Path| format!("tokenizer {}", path.display());
        if bin.exists() {
            return TextTokenizer::from_bin(read(&bin)?, header).with_context(|| name(&bin));
        }
        if json.exists() {
            return TextTokenizer::from_json(&read(&json)?, header).with_context(|| name(&json));
        }
        bail!("there is neither {} nor {}: put the model's tokenizer there", bin.display(), json.display())
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        match &self.vocabulary {
            Vocabulary::Bin(bin) => bin.vocab_size(),
            Vocabulary::Json(json) => json.vocab_size(),
        }
    }

    /// The tokens that stand in front of a text; none for some models.
    pub fn bos(&self) -> &[u32] {
        &self.bos
    }

    /// The tokens that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Bytes of a tokenizer.bin behind the model's last token.
    pub fn spare_bytes(&self) -> usize {
        match &self.vocabulary {
            Vocabulary::Bin(bin) => bin.spare_bytes(),
            Vocabulary::Json(_) => 0,
        }
    }

    /// The tokens of a text, without BOS. Each stretch between added tokens is encoded like a text
    /// of its own.
    ///
    /// # Errors
    /// There is not enough memory, or the vocabulary cannot take the text.
    pub fn encode(&self, text: &str, special: Special) -> anyhow::Result<Vec<u32>> {
        if special == Special::AsText {
            return self.encode_text(text);
        }
        let mut tokens = Vec::new();
        for part in self.added.split(text) {
            match part {
                Part::Token(token) => tokens.push(token),
                Part::Text(text) => tokens.extend(self.encode_text(text)?),
            }
        }
        Ok(tokens)
    }

    /// The tokens of a text that follows another one. Where the vocabulary puts a space in front of
    /// each text, that is the space between them.
    pub(crate) fn encode_behind(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let adds_space = match &self.vocabulary {
            Vocabulary::Bin(_) => true,
            Vocabulary::Json(json) => json.adds_space(),
        };
        self.encode_text(text.strip_prefix(' ').filter(|_| adds_space).unwrap_or(text))
    }

    fn encode_text(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        match &self.vocabulary {
            Vocabulary::Bin(bin) => bin.encode(text),
            Vocabulary::Json(json) => json.encode(text),
        }
    }

    /// The bytes of `token` where it follows `previous`. They need not be whole characters. Nothing
    /// for tokens that the vocabulary lacks.
    pub fn decode(&self, previous: u32, token: u32) -> Cow<'_, [u8]> {
        let after_special = self.bos.contains(&previous) || (self.added.has(previous) && !self.eos.contains(&previous));
        match &self.vocabulary {
            Vocabulary::Bin(bin) => bin.decode(after_special, token),
            Vocabulary::Json(json) => json.decode(after_special, token),
        }
    }

    /// Bytes of text that a token stands for: none for BOS.
    pub fn text_bytes(&self, token: u32) -> usize {
        if self.bos.contains(&token) { 0 } else { self.decode(UNK, token).len() }
    }

    /// The token with this name, or else the one whose piece of the vocabulary this is.
    pub fn token(&self, piece: &str) -> Option<u32> {
        self.added.named(piece).or_else(|| match &self.vocabulary {
            Vocabulary::Bin(bin) => bin.token(piece),
            Vocabulary::Json(json) => json.token(piece),
        })
    }

    /// The name of an added token.
    pub fn name(&self, token: u32) -> Option<&str> {
        self.added.tokens().iter().find(|added| added.token == token).map(|added| &*added.name)
    }

    pub(crate) fn added(&self) -> &Matcher {
        &self.added
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = || format!("tokenizer {}", path.display());
    // This comes before opening, which would wait for a writer if the file is a pipe.
    let about = std::fs::metadata(path).with_context(name)?;
    anyhow::ensure!(about.is_file(), "{}: not a regular file", name());
    anyhow::ensure!(
        about.len() <= json::MOST_BYTES as u64,
        "{} has {} bytes: a tokenizer has at most {}",
        name(),
        about.len(),
        json::MOST_BYTES
    );
    std::fs::read(path).with_context(name)
}
