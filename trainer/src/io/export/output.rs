//! Writes a model to the place that an export names, whole or not at all.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::io::export::job::Job;
use crate::io::export::source::{self, Source};
use crate::io::export::tensor_type::TensorType;
use crate::io::export::{gguf, huggingface};
use crate::io::files::{TOKENIZER, TOKENIZER_JSON, write_folder, write_whole};
use crate::io::foreign::Parts;
use crate::io::model_file::Target;
use crate::io::watched::Watched;
use crate::io::weights::FileVersion;
use crate::report::output::Usage;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model file, with its tokenizer beside it.
    Bin,
    /// A GGUF file.
    Gguf,
    /// A folder of Hugging Face's layout.
    Folder,
}

impl Kind {
    /// The kind that the name of the place tells.
    ///
    /// # Errors
    /// [`Usage`]: the name ends in nothing that is known.
    pub fn of(path: &Path) -> Result<Kind, Usage> {
        let is_folder = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
        match path.extension().and_then(|ending| ending.to_str()) {
            _ if is_folder => Ok(Kind::Folder),
            Some("bin") => Ok(Kind::Bin),
            Some("gguf") => Ok(Kind::Gguf),
            None => Ok(Kind::Folder),
            // Such as Llama-3.2-1B.
            Some(ending) if ending.starts_with(|c: char| c.is_ascii_digit()) => Ok(Kind::Folder),
            Some(ending) => Err(Usage(format!(
                "{}: nothing here writes .{ending}: name an OUT.bin, an OUT.gguf, or a folder with / at its end",
                path.display()
            ))),
        }
    }
}

/// The settings of an export. What is not set has its default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Version of a model file.
    pub version: Option<FileVersion>,
    /// Type of the weights in a GGUF file or a folder.
    pub tensor_type: Option<TensorType>,
}

/// Writes the model at `path` to `out`, and returns the model's name for messages. `stop` is asked
/// between tensors.
///
/// # Errors
/// [`Usage`] for a place or a setting that does not fit; a damaged model; a model that the kind of
/// file cannot hold; files that cannot be written.
pub fn export(path: &Path, out: &Path, options: Options, stop: &dyn Fn() -> bool) -> anyhow::Result<String> {
    let Source { model, name, inputs } = source::open(path)?;
    check_no_input(out, &inputs)?;
    let kind = Kind::of(out)?;
    check_options(kind, options)?;
    let values = Watched::new(&model, stop)?;
    let parts = Parts { values: &values, ..model.parts() };
    match kind {
        Kind::Bin => model_file(&parts, &inputs, out, options.version)?,
        Kind::Gguf | Kind::Folder => {
            check_free(out)?;
            let vocabulary = parts.vocabulary.with_context(|| {
                format!(
                    "there is no {TOKENIZER} or {TOKENIZER_JSON} beside {}: put the model's own there",
                    path.display()
                )
            })?;
            let tensor_type = options.tensor_type.unwrap_or(TensorType::F32);
            let job = Job { name: &people_name(path), parts, vocabulary, tensor_type };
            match kind {
                Kind::Folder => write_folder(out, |folder| huggingface::write(folder, &job))?,
                _ => write_whole(out, |file| gguf::write(file, &job))?,
            }
        }
    }
    values.finish();
    Ok(name)
}

fn model_file(model: &Parts, inputs: &[PathBuf], out: &Path, version: Option<FileVersion>) -> anyhow::Result<()> {
    let version = version.unwrap_or(FileVersion::least(model.header));
    let target = Target { path: out.to_owned(), version, advice: "give another OUT" };
    target.check(&model.header.config, &inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    target.write(model)
}

/// Refuses a place that the model is read from, before anything is said about its name.
fn check_no_input(out: &Path, inputs: &[PathBuf]) -> anyhow::Result<()> {
    let is_read = out
        .canonicalize()
        .is_ok_and(|out| inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| input == out)));
    ensure!(!is_read, "{} is read here, and would be overwritten: give another OUT", out.display());
    Ok(())
}

fn check_options(kind: Kind, options: Options) -> Result<(), Usage> {
    let usage = |message: &str| Err(Usage(message.to_owned()));
    match kind {
        Kind::Bin if options.tensor_type.is_some() => {
            usage("--type is for OUT.gguf and folders: OUT.bin has f32 in --version 0 and 1, int8 in --version 2")
        }
        Kind::Gguf | Kind::Folder if options.version.is_some() => usage("--version is for OUT.bin"),
        Kind::Folder if options.tensor_type == Some(TensorType::Q8_0) => {
            usage("--type q8_0 is for OUT.gguf: a folder takes f32, f16 or bf16")
        }
        _ => Ok(()),
    }
}

/// Refuses a place that holds something: an export replaces nothing but model files.
fn check_free(out: &Path) -> Result<(), Usage> {
    let is_free = match out.metadata() {
        Ok(there) if there.is_dir() => out.read_dir().is_ok_and(|mut entries| entries.next().is_none()),
        Ok(there) => there.is_file() && there.len() == 0,
        Err(_) => !out.is_symlink(),
    };
    if is_free { Ok(()) } else { Err(Usage(format!("{} is there: delete it, or give another OUT", out.display()))) }
}

/// The name of a model for people: its file's or its folder's, as `model.bin` says nothing.
fn people_name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stem = path.file_stem().filter(|stem| path.is_dir() || *stem != "model");
    let name = stem.or_else(|| path.parent()?.file_name());
    name.map_or("model".into(), |name| name.to_string_lossy().into_owned())
}
