//! Prints the tokens of a text.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use infer_core::UNK;
use infer_text::{Special, TextTokenizer};
use serde::Serialize;

use crate::input::read_stdin;
use crate::source::Source;

/// The fields of the JSON object.
#[derive(Serialize)]
struct Report<'a> {
    tokens: &'a [u32],
    /// The text of each; bytes that are no text on their own become U+FFFD.
    pieces: Vec<String>,
}

pub fn run(path: Option<&Path>, text: Option<&str>, special: bool, json: bool) -> anyhow::Result<()> {
    let tokenizer = Source::tokenizer(path)?.whole_tokenizer()?;
    let text = text.map_or_else(read_stdin, |text| Ok(text.to_owned()))?;
    let special = if special { Special::Match } else { Special::AsText };
    let tokens = [tokenizer.bos(), &tokenizer.encode(&text, special)?].concat();
    let mut out = BufWriter::new(io::stdout().lock());
    if json {
        serde_json::to_writer(&mut out, &Report { tokens: &tokens, pieces: pieces(&tokenizer, &tokens) })?;
    } else {
        for (i, token) in tokens.iter().enumerate() {
            write!(out, "{}{token}", if i > 0 { " " } else { "" })?;
        }
    }
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

fn pieces(tokenizer: &TextTokenizer, tokens: &[u32]) -> Vec<String> {
    let piece = |&token| String::from_utf8_lossy(&tokenizer.decode(UNK, token)).into_owned();
    tokens.iter().map(piece).collect()
}
