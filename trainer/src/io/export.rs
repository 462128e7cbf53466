//! Writes a model file and its tokenizer, and replaces nothing that belongs to another model.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::{Config, OwnedTokenizer};

use crate::io::files::{CURVE, METRICS, SETTINGS, TOKENIZER, folder_of, open_model, remove_unfinished, write_whole};
use crate::io::weights::{FileVersion, Weights};

/// The place and the version of a model file.
pub struct Target<'a> {
    /// The model file.
    pub path: PathBuf,
    /// Its version.
    pub version: FileVersion,
    /// Advice for the case that the model cannot go there, for the error message.
    pub advice: &'a str,
}

impl Target<'_> {
    /// Checks the place before a training begins.
    ///
    /// # Errors
    /// The place cannot be written or holds an input, or the version cannot hold the model.
    pub fn check(&self, config: &Config, inputs: &[&Path]) -> anyhow::Result<()> {
        let Target { path, advice, .. } = self;
        if self.version == FileVersion::V2 {
            ensure!(
                config.quantized().is_ok(),
                "dim is {} and hidden_dim is {}: int8 takes multiples of 4 for both, best of 64; choose others, or file \
                 version 0 or 1",
                config.dim,
                config.hidden_dim
            );
        }
        let name = path.display();
        let is_folder = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
        ensure!(!is_folder, "{name} is a folder, not the model file to write: {advice}");
        let taken = [TOKENIZER, SETTINGS, METRICS, CURVE];
        ensure!(
            path.file_name().is_some_and(|name| taken.iter().all(|taken| name != *taken)),
            "{name:?} cannot be the model file: a run has another file of this name: {advice}"
        );
        if let Ok(there) = path.canonicalize() {
            let is_there = |input: &&Path| input.canonicalize().is_ok_and(|input| input == there);
            ensure!(!inputs.iter().any(is_there), "{name} is read here, and would be overwritten: {advice}");
        }
        // An empty file holds nothing; mktemp makes one, for example.
        let is_free = |there: std::fs::Metadata| there.is_file() && (there.len() == 0 || open_model(path).is_ok());
        ensure!(
            path.metadata().ok().is_none_or(is_free),
            "{name} is no model file, and would be overwritten: {advice}"
        );
        let folder = folder_of(path);
        let writable = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
        writable.with_context(|| format!("{name} cannot be written: {advice}"))?;
        Ok(())
    }

    /// Checks the tokenizer that goes beside the model. Returns whether it is there already.
    ///
    /// # Errors
    /// The tokenizer is not whole, or another one is in its place: models beside that one would
    /// tell gibberish with this one.
    pub fn check_tokenizer(&self, config: &Config, tokenizer: &[u8]) -> anyhow::Result<bool> {
        OwnedTokenizer::new(tokenizer, config.vocab_size).context("the tokenizer of this run")?;
        let path = self.path.with_file_name(TOKENIZER);
        match std::fs::read(&path) {
            Ok(there) => ensure!(
                there == tokenizer,
                "{} is another vocabulary than that of {}, and may belong to a model beside it: {}",
                path.display(),
                self.path.display(),
                self.advice
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).with_context(|| format!("{}: {}", path.display(), self.advice)),
        }
        Ok(true)
    }

    /// Writes the model file, with its tokenizer beside it.
    ///
    /// # Errors
    /// As [`check_tokenizer`](Self::check_tokenizer), a weight that is not finite, and files that
    /// cannot be written.
    pub fn write(&self, weights: &Weights, tokenizer: &[u8]) -> anyhow::Result<()> {
        let bytes = weights.to_file(self.version)?;
        if !self.check_tokenizer(&weights.config, tokenizer)? {
            write_whole(&self.path.with_file_name(TOKENIZER), |out| Ok(out.write_all(tokenizer)?))?;
        }
        _ = remove_unfinished(folder_of(&self.path)); // may fail: other users' leftovers stay
        write_whole(&self.path, |out| Ok(out.write_all(&bytes)?))
    }
}
