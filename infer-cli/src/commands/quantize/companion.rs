//! What goes with a model: its tokenizer, and its chat template if that is a file.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::format::Header;
use infer_text::{BESIDE, CHAT_TEMPLATE, TOKENIZER_BIN, TOKENIZER_JSON, Template};
use same_file::is_same_file;

use super::temporary_beside;
use crate::session::Usage;
use crate::source::{Source, read};
use crate::wrong_file::is_tokenizer_json;

/// The names that have a meaning beside a model.
pub const NAMES: [&str; 3] = [TOKENIZER_BIN, TOKENIZER_JSON, CHAT_TEMPLATE];

/// A file that is to be written beside the output.
pub struct Companion {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Companion {
    /// What is to be written beside the output. A file of another model there is never replaced,
    /// nor left for the output to be read with.
    pub fn all(input: &Path, output: &Path, given: Option<&Path>, header: &Header) -> anyhow::Result<Vec<Companion>> {
        let tokenizer = Companion::tokenizer(input, output, given, header)?;
        let template = if header.template.as_str() == BESIDE { Companion::template(input, output)? } else { None };
        Ok(tokenizer.into_iter().chain(template).collect())
    }

    /// Takes the given tokenizer, or the one beside the input, and checks that it is whole.
    fn tokenizer(
        input: &Path,
        output: &Path,
        given: Option<&Path>,
        header: &Header,
    ) -> anyhow::Result<Option<Companion>> {
        let names = [TOKENIZER_BIN, TOKENIZER_JSON]; // programs look for them in this order
        let beside = || names.map(|name| input.with_file_name(name)).into_iter().find(|path| path.exists());
        let Some(from) = given.map(Path::to_path_buf).or_else(beside) else {
            for there in names.map(|name| output.with_file_name(name)) {
                ensure!(
                    !there.exists(),
                    "{} is there, and nothing tells whether it is this model's: name the model's own with -z",
                    there.display()
                );
            }
            return Ok(None);
        };
        let source = Source::tokenizer(Some(&from))?; // first: opening a pipe, as the comparison does, would wait
        if is_same_file(&from, output).unwrap_or(false) {
            return Err(Usage(format!("output {} is the tokenizer itself: give another name", output.display())).into());
        }
        source.text_tokenizer(header).context("name the model's own tokenizer with -z")?;
        let [bin, json] = names.map(|name| output.with_file_name(name));
        let path = if is_tokenizer_json(&source) { json } else { bin.clone() };
        ensure!(
            path == bin || !bin.exists(),
            "{} is there, and would be read instead of {TOKENIZER_JSON}: name an output in another folder, or move \
             that file away",
            bin.display()
        );
        Companion::unless_there(path, &source, &from, "print gibberish")
    }

    fn template(input: &Path, output: &Path) -> anyhow::Result<Option<Companion>> {
        let from = input.with_file_name(CHAT_TEMPLATE);
        Template::file(&from)?;
        let bytes = read(&from).with_context(|| format!("chat template {}", from.display()))?;
        Companion::unless_there(output.with_file_name(CHAT_TEMPLATE), &bytes, &from, "chat in another form")
    }

    /// Nothing if the file is there already, and an error if another one is.
    fn unless_there(path: PathBuf, bytes: &[u8], from: &Path, harm: &str) -> anyhow::Result<Option<Companion>> {
        if !path.exists() {
            return Ok(Some(Companion { path, bytes: bytes.to_vec() }));
        }
        let there = read(&path).with_context(|| path.display().to_string())?;
        ensure!(
            there == bytes,
            "{} is there and differs from {}, so that a model beside it would {harm}: name an output in another \
             folder, or move that file away",
            path.display(),
            from.display()
        );
        Ok(None)
    }

    pub fn write(&self) -> anyhow::Result<()> {
        let out_file = || self.path.display().to_string();
        let mut temporary = temporary_beside(&self.path).with_context(out_file)?;
        temporary.write_all(&self.bytes).with_context(out_file)?;
        temporary.as_file().sync_all().with_context(out_file)?;
        // Not over a file that came into being meanwhile.
        temporary.persist_noclobber(&self.path).with_context(out_file)?;
        Ok(())
    }
}
