//! The vocabulary of a model to import, and the tokenizer.bin that it becomes where the rules of
//! llama2.c give the same tokens.

use anyhow::{bail, ensure};
use infer_core::tokenizer::write;

use crate::io::vocabulary::Vocabulary;

/// Score of tokens that text never becomes, such as `<|im_start|>`: below every score that merges.
pub const NEVER: f32 = -1e11;

/// A vocabulary, and what its files say about the tokens that begin and end a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// The vocabulary.
    pub pieces: Pieces,
    /// The tokens that are put in front of a text.
    pub bos: Vec<u32>,
    /// The tokens that end a text, if the vocabulary tells.
    pub eos: Vec<u32>,
    /// The chat template in Jinja.
    pub template: Option<String>,
}

/// The tokens of a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub enum Pieces {
    /// The entries of a tokenizer.bin: scores and pieces.
    Scored(Vec<(f32, String)>),
    /// A tokenizer.json, its number of tokens, and how many of them text can become or merges need.
    Json {
        /// Contents of the file.
        bytes: Vec<u8>,
        /// Number of tokens.
        size: usize,
        /// The first id behind the tokens that are not special.
        needed: usize,
    },
}

impl Pieces {
    /// The file that goes beside a model of `vocab_size` tokens. Tables of embeddings are often
    /// padded to a round number of rows, and tokens that are never taught have none.
    ///
    /// # Errors
    /// The model has fewer tokens than text can become.
    pub fn fit(&self, vocab_size: usize) -> anyhow::Result<Vocabulary> {
        let needed = match self {
            Pieces::Scored(entries) => entries.iter().rposition(|(score, _)| *score > NEVER).map_or(0, |last| last + 1),
            Pieces::Json { needed, .. } => *needed,
        };
        ensure!(
            needed <= vocab_size,
            "the vocabulary has {needed} tokens, and the model {vocab_size} embeddings: it is another model's"
        );
        match self {
            Pieces::Scored(entries) => {
                let padding = (entries.len()..vocab_size).map(|id| (NEVER, format!("<unused{id}>")));
                let entries = entries.iter().take(vocab_size).cloned().chain(padding);
                Ok(Vocabulary::Bin(tokenizer_bin(entries.collect())?))
            }
            Pieces::Json { bytes, .. } => Ok(Vocabulary::Json(bytes.clone())),
        }
    }

    /// Number of tokens.
    pub fn size(&self) -> usize {
        match self {
            Pieces::Scored(entries) => entries.len(),
            Pieces::Json { size, .. } => *size,
        }
    }
}

/// The bytes of a tokenizer.bin.
fn tokenizer_bin(entries: Vec<(f32, String)>) -> anyhow::Result<Vec<u8>> {
    let longest = entries.iter().map(|(_, piece)| piece.len()).max().unwrap_or(0);
    let mut file = Vec::new();
    write(&mut file, longest as u32, entries)?;
    Ok(file)
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Text becomes it.
    Text,
    /// It stands for one byte.
    Byte,
    /// Text never becomes it.
    Special,
}

/// The entries of a tokenizer.bin for pieces as SentencePiece has them, with their scores.
///
/// # Errors
/// llama2.c's rules for ids cannot tell these tokens apart.
pub fn scored(pieces: impl Iterator<Item = (String, f32, Kind)>) -> anyhow::Result<Vec<(f32, String)>> {
    const FIRST_BYTE: usize = 3;
    let mut entries = Vec::new();
    let mut bytes = 0;
    for (id, (piece, score, kind)) in pieces.enumerate() {
        ensure!(!score.is_nan(), "the score of token {id} is not a number");
        match kind {
            Kind::Byte => {
                let byte = id.wrapping_sub(FIRST_BYTE);
                ensure!(
                    piece == format!("<0x{byte:02X}>"),
                    "token {id} is the byte {piece}: tokenizer.bin has the 256 bytes at ids 3 to 258"
                );
                bytes += 1;
                entries.push((score, piece));
            }
            Kind::Special if id < FIRST_BYTE => entries.push((
                score,
                match (id, &*piece) {
                    // As llama2.c's tokenizer.py writes them.
                    (1, "<s>") => "\n<s>\n".into(),
                    (2, "</s>") => "\n</s>\n".into(),
                    _ => piece,
                },
            )),
            Kind::Special => entries.push((NEVER, piece)),
            Kind::Text if id < FIRST_BYTE => {
                bail!("token {id} is {piece:?}: in tokenizer.bin, ids 0, 1 and 2 are the unknown token, BOS and EOS")
            }
            Kind::Text => entries.push((score, piece.replace('\u{2581}', " "))),
        }
    }
    ensure!(matches!(bytes, 0 | 256), "it has {bytes} byte tokens: tokenizer.bin has 256 or none");
    ensure!(
        entries.len() >= FIRST_BYTE,
        "it has {} tokens: the unknown token, BOS and EOS are the least",
        entries.len()
    );
    Ok(entries)
}
