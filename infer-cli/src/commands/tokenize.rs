//! Prints the tokens of a text.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::OwnedTokenizer;
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

pub fn run(path: Option<&Path>, text: Option<&str>, json: bool) -> anyhow::Result<()> {
    let bytes = Source::tokenizer(path)?;
    let tokenizer = OwnedTokenizer::whole(&*bytes).with_context(|| bytes.name.clone())?;
    let text = text.map_or_else(read_stdin, |text| Ok(text.to_owned()))?;
    let tokens = tokenizer.encode(&text)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if json {
        serde_json::to_writer(&mut out, &Report { tokens: &tokens, pieces: pieces(&tokenizer, &tokens)? })?;
    } else {
        for (i, token) in tokens.iter().enumerate() {
            write!(out, "{}{token}", if i > 0 { " " } else { "" })?;
        }
    }
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

fn pieces(tokenizer: &OwnedTokenizer<&[u8]>, tokens: &[u32]) -> Result<Vec<String>, infer_core::Error> {
    let piece = |&token| Ok(String::from_utf8_lossy(tokenizer.decode(0, token)?).into_owned());
    tokens.iter().map(piece).collect()
}
