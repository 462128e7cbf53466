//! Opens the model that an export takes: a model file of any version, a checkpoint, or a run.

use std::path::{Path, PathBuf};

use anyhow::Context;
use infer_core::format::Header;
use infer_text::Template;

use crate::io::checkpoint::{Checkpoint, RUN, TENSORS};
use crate::io::files::{TOKENIZER, TOKENIZER_JSON, folder_of};
use crate::io::foreign::Foreign;
use crate::io::import::llama2c;
use crate::io::inference::find_checkpoint;
use crate::io::vocabulary::Vocabulary;
use crate::io::weights::{FileVersion, Weights};

/// A model to export.
pub struct Source {
    /// The model.
    pub model: Foreign,
    /// Its name in messages.
    pub name: String,
    /// The files that it is read from.
    pub inputs: Vec<PathBuf>,
}

/// Opens a model file with what lies beside it, a checkpoint, or the best checkpoint of a run's
/// out_dir.
///
/// # Errors
/// A file that is missing or damaged.
pub fn open(path: &Path) -> anyhow::Result<Source> {
    match find_checkpoint(path)? {
        Some(checkpoint) => from_checkpoint(checkpoint),
        None => from_file(path).with_context(|| format!("model {}", path.display())),
    }
}

fn from_checkpoint(mut checkpoint: Checkpoint) -> anyhow::Result<Source> {
    let weights = Weights::from_checkpoint(&mut checkpoint)?;
    let header = FileVersion::V1.header(&weights.header)?;
    let template = match checkpoint.run.template.take() {
        Some(template) => Some(template),
        None => template(&header, &checkpoint.path)?,
    };
    let vocabulary = Some(checkpoint.run.vocabulary(checkpoint.tokenizer));
    Ok(Source {
        model: Foreign { header, vocabulary, template, values: Box::new(weights) },
        name: format!("{} (step {})", checkpoint.path.display(), checkpoint.run.iter),
        inputs: [TENSORS, RUN, TOKENIZER].map(|name| checkpoint.path.join(name)).into(),
    })
}

fn from_file(path: &Path) -> anyhow::Result<Source> {
    let (header, values) = llama2c::open(path)?;
    let beside = [TOKENIZER, TOKENIZER_JSON].map(|name| path.with_file_name(name));
    let vocabulary = match beside.each_ref().map(|path| path.exists()) {
        [true, _] => Some(Vocabulary::Bin(std::fs::read(&beside[0]).context(TOKENIZER)?)),
        [_, true] => Some(Vocabulary::Json(std::fs::read(&beside[1]).context(TOKENIZER_JSON)?)),
        _ => None,
    };
    let template = template(&header, folder_of(path))?;
    Ok(Source {
        model: Foreign { header, vocabulary, template, values },
        name: path.display().to_string(),
        inputs: [path.to_owned()].into_iter().chain(beside).collect(),
    })
}

/// The Jinja source of a model's chat template. A template of no name of ours lies in its folder.
fn template(header: &Header, folder: &Path) -> anyhow::Result<Option<String>> {
    Ok(Template::of(header, folder)?.map(|template| template.jinja_source().to_owned()))
}
