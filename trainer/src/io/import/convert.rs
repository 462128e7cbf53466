//! Writes an imported model, or a vocabulary alone, to its place.

use std::path::Path;

use anyhow::{Context, ensure};
use infer_core::format::Header;

use crate::io::files::{TOKENIZER, TOKENIZER_JSON, write_whole};
use crate::io::foreign::Parts;
use crate::io::import::model::Hints;
use crate::io::import::{open, open_tokenizer};
use crate::io::model_file::Target;
use crate::io::vocabulary::Vocabulary;
use crate::io::watched::Watched;
use crate::io::weights::FileVersion;

const ADVICE: &str = "give another OUT";

/// Imports the model or vocabulary at `path` to `out`, and returns what was done, in words. `stop`
/// is asked between tensors.
///
/// # Errors
/// As [`open`]; a place that holds something else; a version that cannot hold the model; files that
/// cannot be written.
pub fn convert(
    path: &Path,
    out: &Path,
    version: Option<FileVersion>,
    hints: &Hints,
    stop: &dyn Fn() -> bool,
) -> anyhow::Result<String> {
    let is_vocabulary = path.extension().is_some_and(|extension| extension == "model" || extension == "json");
    if is_vocabulary || out.file_name().is_some_and(|name| name == TOKENIZER || name == TOKENIZER_JSON) {
        return convert_tokenizer(path, out);
    }
    let model = open(path, hints)?;
    let header = &model.header;
    let version = version.unwrap_or(FileVersion::least(header));
    let target = Target { path: out.to_owned(), version, advice: ADVICE };
    ensure!(
        header.is_plain() || target.version != FileVersion::V0,
        "--version 0 has no place for {}: give --version 1, or 2 for int8",
        beyond_plain(header)
    );
    target.check(&header.config, &[path])?;
    let values = Watched::new(&model, stop)?;
    target
        .write(&Parts { values: &values, ..model.parts() })
        .with_context(|| format!("importing {}", path.display()))?;
    values.finish();
    let beside = match &model.vocabulary {
        Some(Vocabulary::Bin(_)) => format!("with {TOKENIZER}"),
        Some(Vocabulary::Json(_)) => format!("with {TOKENIZER_JSON}"),
        None => "without a vocabulary: put the model's own beside it".into(),
    };
    Ok(format!("{} to {}, {beside}", path.display(), out.display()))
}

/// What a plain file cannot say about a model.
fn beyond_plain(header: &Header) -> String {
    let config = &header.config;
    let plain = infer_core::Config::new(1, 1, 1, 1, 1, 1);
    let mut beyond = Vec::new();
    if config.rope.theta != plain.rope.theta {
        beyond.push(format!("the base {} of the rotary angles", config.rope.theta));
    }
    if config.rope.scaling != plain.rope.scaling {
        beyond.push("the scaling of the rotary angles".into());
    }
    if config.norm_eps != plain.norm_eps {
        beyond.push(format!("the norm's epsilon {:e}", config.norm_eps));
    }
    if header.tokens != infer_core::format::SpecialTokens::LLAMA2 {
        beyond.push(format!("BOS {:?} and EOS {:?}", header.tokens.bos(), header.tokens.eos()));
    }
    if !header.template.as_str().is_empty() {
        beyond.push("the chat template".into());
    }
    beyond.join(", ")
}

fn convert_tokenizer(path: &Path, out: &Path) -> anyhow::Result<String> {
    let vocabulary = open_tokenizer(path)?;
    let is_json = matches!(vocabulary, Vocabulary::Json(_));
    ensure!(
        !is_json || out.extension().is_some_and(|extension| extension == "json"),
        "{}: a tokenizer.bin cannot carry this vocabulary, as it would cut texts into other tokens: name an OUT \
         {TOKENIZER_JSON}",
        path.display()
    );
    ensure!(
        is_json || out.extension().is_none_or(|extension| extension != "json"),
        "this vocabulary becomes a {TOKENIZER}: name that as OUT"
    );
    let (Vocabulary::Bin(bytes) | Vocabulary::Json(bytes)) = vocabulary;
    let is_other = std::fs::read(out).is_ok_and(|there| !there.is_empty() && there != bytes);
    ensure!(!is_other, "{} is there and differs, and may belong to a model beside it: {ADVICE}", out.display());
    write_whole(out, |file| Ok(file.write_all(&bytes)?))?;
    Ok(format!("{} to {}", path.display(), out.display()))
}
