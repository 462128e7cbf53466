//! What goes into a template and what comes out.

use crate::tokenizer::{Special, TextTokenizer};

/// What somebody says.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// "system", "user", "assistant", or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A conversation as the model reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// All tokens, BOS included where the template has it.
    pub tokens: Vec<u32>,
    /// For each token, whether it belongs to an answer of the assistant; the token that ends the
    /// answer does.
    pub answer: Vec<bool>,
}

/// What a template wrote: text that is to be encoded, and tokens.
#[derive(Debug, Default)]
pub struct Script {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// Neighbouring texts are encoded as one.
    Text(String),
    Tokens(Vec<u32>),
    /// An answer, encoded by itself: it begins with a token of its own when the model gives it.
    Answer(String),
    AnswerTokens(Vec<u32>),
}

impl Script {
    pub fn text(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(before)) => before.push_str(text),
            _ => self.pieces.push(Piece::Text(text.into())),
        }
    }

    pub fn tokens(&mut self, tokens: &[u32]) {
        self.pieces.push(Piece::Tokens(tokens.into()));
    }

    pub fn answer(&mut self, text: &str) {
        self.pieces.push(Piece::Answer(text.into()));
    }

    /// Tokens of an answer: those that a model gave, and the one that ends it.
    pub fn answer_tokens(&mut self, tokens: &[u32]) {
        self.pieces.push(Piece::AnswerTokens(tokens.into()));
    }

    pub fn encode(self, tokenizer: &TextTokenizer) -> anyhow::Result<Rendered> {
        let mut rendered = Rendered::default();
        for piece in self.pieces {
            let (tokens, answer) = match piece {
                Piece::Text(text) => (tokenizer.encode(&text, Special::AsText)?, false),
                Piece::Tokens(tokens) => (tokens, false),
                Piece::Answer(text) => (tokenizer.encode_behind(&text)?, true),
                Piece::AnswerTokens(tokens) => (tokens, true),
            };
            rendered.tokens.extend(tokens);
            rendered.answer.resize(rendered.tokens.len(), answer);
        }
        Ok(rendered)
    }
}
