//! Prints the tokens of a text.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::count_entries;

use crate::session::{OwnedTokenizer, Usage, encode};
use crate::source::Source;

pub fn run(path: Option<&Path>, text: Option<&str>) -> anyhow::Result<()> {
    let bytes = Source::tokenizer(path)?;
    let in_file = || bytes.name.clone();
    let vocab_size = count_entries(&bytes).with_context(in_file)?;
    let tokenizer = OwnedTokenizer::new(&bytes, vocab_size).with_context(in_file)?;
    let text = match text {
        Some(text) => text.to_owned(),
        None => {
            let mut input = Vec::new();
            io::stdin().lock().read_to_end(&mut input)?;
            String::from_utf8(input).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                Usage(format!("standard input is not valid UTF-8 from byte {at} on: convert it to UTF-8"))
            })?
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    for (i, token) in encode(&tokenizer.get(), &text)?.iter().enumerate() {
        write!(out, "{}{token}", if i > 0 { " " } else { "" })?;
    }
    writeln!(out)?;
    out.flush()?;
    Ok(())
}
