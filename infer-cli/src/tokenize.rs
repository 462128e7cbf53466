//! Prints the tokens of a text.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::{count_entries, map_file};

use crate::session::{OwnedTokenizer, Usage, encode};

pub fn run(path: &Path, text: Option<&str>) -> anyhow::Result<()> {
    let in_file = || format!("tokenizer {}", path.display());
    let bytes = map_file(path).with_context(|| format!("{}: give a tokenizer.bin with -z", in_file()))?;
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
