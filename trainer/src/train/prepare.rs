//! Finds or makes what a run needs before its first step, and checks that it fits together.

use std::fs::File;
use std::path::{Path, PathBuf};

use infer_core::format::{Header, Version};

use crate::io::files::lock;
use crate::io::model_file::Target;
use crate::io::weights::FileVersion;
use crate::train::corpus::Corpus;
use crate::train::group::Group;
use crate::train::memory;
use crate::train::settings::{InitFrom, Settings};
use crate::train::start::Start;

/// What there is before the first step.
pub struct Prepared {
    /// The settings, with the size of the vocabulary.
    pub settings: Settings,
    /// The weights to start from.
    pub start: Start,
    /// The data to learn.
    pub data: Corpus,
    /// Keeps other trainers out of out_dir.
    pub lock: Option<File>,
}

impl Prepared {
    /// Finds or makes everything. Rank 0 alone writes to out_dir.
    ///
    /// # Errors
    /// Settings, files and weights that do not fit together.
    pub fn new(settings: Settings, group: &Group) -> anyhow::Result<Prepared> {
        let writes = group.leads() && !settings.eval_only;
        let lock = writes.then(|| lock(&settings.out_dir, "another trainer", "name another --out-dir")).transpose()?;
        let start = Start::find(&settings)?;
        let config = start.config(&settings)?;
        memory::check(&settings, &config, group.local_size())?;
        if writes {
            target(&settings, &Header::new(Version::V1, config)).check(&config, &inputs(&settings))?;
        }
        let data = Corpus::prepare(&settings, &start)?;
        let vocab_size = match start {
            Start::Scratch => data.vocab_size(),
            _ => config.vocab_size, // a vocabulary may leave tokens of the model unused
        };
        let settings = Settings { vocab_size: Some(vocab_size), ..settings };
        // Again, now that the vocabulary is known.
        memory::check(&settings, &start.config(&settings)?, group.local_size())?;
        Ok(Prepared { settings, start, data, lock })
    }

    /// The settings with which the other ranks take the data that rank 0 has made.
    ///
    /// # Errors
    /// A path that is no Unicode.
    pub fn for_others(&self) -> anyhow::Result<String> {
        let tokenizer = match &self.data {
            Corpus::Stories(_) => self.settings.tokenizer.clone(),
            Corpus::Chats(_) => Some(self.data.tokenizer_path().into()),
        };
        let data = self.data.folder();
        Ok(toml::to_string(&Settings { data, valid: None, separator: None, tokenizer, ..self.settings.clone() })?)
    }
}

/// The place for the trained model of this header.
pub fn target(settings: &Settings, header: &Header) -> Target<'static> {
    let advice = match settings.export {
        Some(_) => "name another --export",
        None => "name the model with --export, or another --out-dir",
    };
    let version = settings.export_version.unwrap_or(FileVersion::least(header));
    Target { path: settings.export_path(), version, advice }
}

/// The files that a run reads.
fn inputs(settings: &Settings) -> Vec<&Path> {
    let Settings { data, valid, chats, chats_valid, tokenizer, teacher, .. } = settings;
    let given = [data, valid, chats, chats_valid, tokenizer, teacher].into_iter().flatten().map(PathBuf::as_path);
    let model = match &settings.init_from {
        InitFrom::Model(path) => Some(Path::new(path)),
        InitFrom::Scratch | InitFrom::Resume => None,
    };
    given.chain(model).collect()
}
