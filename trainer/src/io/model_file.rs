//! Writes a model file with its vocabulary and its chat template, and replaces nothing that belongs
//! to another model.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::format::{self, Header};
use infer_core::{Config, OwnedTokenizer};
use infer_text::{BESIDE, CHAT_TEMPLATE};

use crate::io::files::{
    CURVE, METRICS, SETTINGS, TOKENIZER, TOKENIZER_JSON, folder_of, open_model, remove_unfinished, write_whole,
};
use crate::io::foreign::Parts;
use crate::io::rotary;
use crate::io::vocabulary::Vocabulary;
use crate::io::weights::{FileVersion, not_finite};

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
        let taken = [TOKENIZER, TOKENIZER_JSON, SETTINGS, METRICS, CURVE];
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

    /// Checks what goes beside the model. Returns what of it is not there yet.
    ///
    /// # Errors
    /// The vocabulary is not whole or there is none, or another one is in its place: models beside
    /// that one would tell gibberish with this one. The same goes for a chat template.
    pub fn check_beside<'a>(
        &self,
        header: &Header,
        vocabulary: Option<&'a Vocabulary>,
        template: Option<&'a str>,
    ) -> anyhow::Result<Vec<(PathBuf, &'a [u8])>> {
        let mut beside = Vec::new();
        match vocabulary {
            Some(Vocabulary::Bin(bytes)) => {
                OwnedTokenizer::new(&bytes[..], header.config.vocab_size).context("the tokenizer of this run")?;
                beside.push((TOKENIZER, &bytes[..]));
            }
            Some(Vocabulary::Json(bytes)) => {
                let other = self.path.with_file_name(TOKENIZER); // readers look for it first
                ensure!(!other.exists(), "{} {}: {}", other.display(), self.is_another("vocabulary"), self.advice);
                beside.push((TOKENIZER_JSON, &bytes[..]));
            }
            None => {}
        }
        if let (Some(template), BESIDE) = (template, header.template.as_str()) {
            beside.push((CHAT_TEMPLATE, template.as_bytes()));
        }
        let mut missing = Vec::new();
        for (name, bytes) in beside {
            let path = self.path.with_file_name(name);
            let what = if name == CHAT_TEMPLATE { "chat template" } else { "vocabulary" };
            match std::fs::read(&path) {
                Ok(there) => {
                    ensure!(there == bytes, "{} {}: {}", path.display(), self.is_another(what), self.advice);
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing.push((path, bytes)),
                Err(e) => return Err(e).with_context(|| format!("{}: {}", path.display(), self.advice)),
            }
        }
        Ok(missing)
    }

    fn is_another(&self, what: &str) -> String {
        format!("is another {what} than that of {}, and may belong to a model beside it", self.path.display())
    }

    /// Writes the model file, one tensor at a time, with what goes beside it.
    ///
    /// # Errors
    /// As [`check_beside`](Self::check_beside), a version that cannot hold the model, a weight that
    /// is not finite, and files that cannot be read or written.
    pub fn write(&self, model: &Parts) -> anyhow::Result<()> {
        let header = self.version.header(model.header)?;
        let beside = self.check_beside(&header, model.vocabulary, model.template)?;
        _ = remove_unfinished(folder_of(&self.path)); // may fail: other users' leftovers stay
        write_whole(&self.path, |mut out| {
            let values = |name, layer| rotary::read(model.values, &header.config, name, layer);
            format::write(&mut out, &header, values).map_err(not_finite)?;
            // Now that no weight can fail any more, and before the model has its name.
            beside.iter().try_for_each(|(path, bytes)| write_whole(path, |out| Ok(out.write_all(bytes)?)))
        })
    }
}
