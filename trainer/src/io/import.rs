//! Reads models in the files of other programs. Each becomes a [`Foreign`]: its header, its
//! vocabulary, and its weights, which stay in the file until they are asked for.
//!
//! - `huggingface`, `meta`, `gguf`, `llama2c`: a format each. What its names mean, and whether its
//!   model computes what infer-core computes.
//! - `model`: what an importer of a format is told, and what it gives.
//! - `weights`: finds tensors, checks shapes, joins parts and orders rows, for all formats.
//! - `tensors`, `pytorch`, `pickle`, `zip`, `gguf_header`: where values lie in a file, and as what.
//! - `vocabulary`, `sentencepiece`, `tokenizer_json`, `tiktoken`: from vocabularies to the files
//!   that lie beside a model.
//!
//! Files come from strangers. Nothing in them is run, and no memory is taken for what they claim to
//! have but do not.

mod blocks;
mod byte_level;
pub mod convert;
mod file;
mod gguf;
mod gguf_header;
mod gguf_vocabulary;
mod huggingface;
mod huggingface_config;
mod huggingface_vocabulary;
pub mod llama2c;
mod meta;
pub mod model;
mod pickle;
mod pytorch;
mod sentencepiece;
mod template;
mod tensors;
mod tiktoken;
mod tokenizer_json;
mod vocabulary;
mod weights;
mod zip;

use std::path::Path;

use anyhow::{Context, ensure};
use infer_core::OwnedTokenizer;
use infer_core::format::{Header, SpecialTokens, TemplateName, Version};
use infer_text::{BESIDE, CHAT_TEMPLATE};

use crate::io::files::{TOKENIZER, TOKENIZER_JSON, folder_of};
use crate::io::foreign::Foreign;
use crate::io::import::file::{Input, read_small, read_text};
use crate::io::import::model::{Hints, Model, seq_len};
use crate::io::import::vocabulary::Words;
use crate::io::vocabulary::Vocabulary;
use crate::report::output::note;

/// The formats of models.
enum Format {
    HuggingFace,
    Meta,
    PyTorch,
    Gguf,
    Llama2c,
}

impl Format {
    /// The format of a folder or file, and the path of it: a file of safetensors stands for its
    /// folder.
    fn of(path: &Path) -> anyhow::Result<(Format, &Path)> {
        if path.is_dir() {
            let has = |name: &str| path.join(name).exists();
            ensure!(
                has(huggingface::CONFIG) || has(meta::PARAMS) || has("consolidated.00.pth"),
                "{} has neither {} (a folder of Hugging Face) nor {} (one of Meta)",
                path.display(),
                huggingface::CONFIG,
                meta::PARAMS
            );
            return Ok((if has(huggingface::CONFIG) { Format::HuggingFace } else { Format::Meta }, path));
        }
        let file = Input::open(path)?;
        let start = file.bytes(0, file.len.min(4))?;
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Ok((Format::HuggingFace, folder_of(path)));
        }
        let format = if start == gguf_header::MAGIC {
            Format::Gguf
        } else if zip::is_zip(&start) || start.starts_with(&[0x80, 2]) {
            Format::PyTorch
        } else {
            Format::Llama2c
        };
        Ok((format, path))
    }
}

/// Opens a model of any format.
///
/// # Errors
/// Names the file, and the field or tensor in it, that is missing, damaged, or part of a model that
/// infer-core cannot compute.
pub fn open(path: &Path, hints: &Hints) -> anyhow::Result<Foreign> {
    let (format, path) = Format::of(path)?;
    let read = || {
        let words = match &hints.tokenizer {
            Some(given) => Some(read_tokenizer(given)?),
            None => own_vocabulary(&format, path)?,
        };
        let model = match format {
            Format::Llama2c => return open_llama2c(path, hints, words),
            Format::HuggingFace => huggingface::open(path, hints)?,
            Format::Meta => meta::open(path, hints)?,
            Format::PyTorch => meta::open_file(path, hints)?,
            Format::Gguf => gguf::open(path, hints)?,
        };
        assemble(model, words)
    };
    let named = path.display().to_string();
    // Messages about one of several files name that one already.
    read().map_err(|e| if format!("{e:#}").contains(&named) { e } else { e.context(named) })
}

/// A vocabulary to bring along: one of another program, or one that lies beside models already.
enum Brought {
    Words(Words),
    Ready(Vocabulary),
}

/// The vocabulary that came with a model.
fn own_vocabulary(format: &Format, path: &Path) -> anyhow::Result<Option<Brought>> {
    Ok(match format {
        Format::HuggingFace => huggingface_vocabulary::read(path)?.map(Brought::Words),
        Format::Gguf => gguf::open_vocabulary(path)?.map(Brought::Words),
        Format::Meta => beside(path)?,
        Format::PyTorch | Format::Llama2c => beside(folder_of(path))?,
    })
}

/// Reads a vocabulary of its own: tokenizer.model, tokenizer.json, tokenizer.bin or a GGUF file.
fn read_tokenizer(path: &Path) -> anyhow::Result<Brought> {
    let file = Input::open(path)?;
    let start = file.bytes(0, file.len.min(1024))?;
    let in_file = || path.display().to_string();
    Ok(Brought::Words(if start.starts_with(gguf_header::MAGIC) {
        let words = gguf::open_vocabulary(path).with_context(in_file)?;
        words.with_context(|| format!("{}: it has no vocabulary", path.display()))?
    } else if start.first() == Some(&b'{') {
        tokenizer_json::read(&read_small(path, tokenizer_json::MAX_JSON)?, None).with_context(in_file)?
    } else if path.extension().is_some_and(|extension| extension == "bin") {
        let bytes = read_small(path, tokenizer_json::MAX_JSON)?;
        OwnedTokenizer::whole(&bytes).with_context(in_file)?;
        return Ok(Brought::Ready(Vocabulary::Bin(bytes)));
    } else if tiktoken::is_tiktoken(&start) {
        tiktoken::read(&read_small(path, tiktoken::MAX_FILE)?).with_context(in_file)?
    } else {
        sentencepiece::read(&read_small(path, sentencepiece::MAX_MODEL)?).with_context(in_file)?
    }))
}

/// Reads a vocabulary that is imported without a model.
///
/// # Errors
/// The file is damaged, or of a kind that is not known.
pub fn open_tokenizer(path: &Path) -> anyhow::Result<Vocabulary> {
    match read_tokenizer(path)? {
        Brought::Words(words) => words.pieces.fit(words.pieces.size()),
        Brought::Ready(vocabulary) => Ok(vocabulary),
    }
}

/// The vocabulary in a folder that is not Hugging Face's.
fn beside(folder: &Path) -> anyhow::Result<Option<Brought>> {
    let names = [TOKENIZER, TOKENIZER_JSON, huggingface_vocabulary::MODEL];
    let there = names.map(|name| folder.join(name)).into_iter().find(|path| path.exists());
    there.as_deref().map(read_tokenizer).transpose()
}

/// Puts a model and a vocabulary together.
fn assemble(model: Model, words: Option<Brought>) -> anyhow::Result<Foreign> {
    let vocab_size = model.config.vocab_size;
    let (mut bos, mut eos) = (SpecialTokens::LLAMA2.bos().to_vec(), SpecialTokens::LLAMA2.eos().to_vec());
    let (mut vocabulary, mut template) = (None, None);
    match words {
        Some(Brought::Words(words)) => {
            vocabulary = Some(words.pieces.fit(vocab_size)?);
            (bos, template) = (words.bos, words.template);
            if !words.eos.is_empty() {
                eos = words.eos;
            }
        }
        Some(Brought::Ready(ready)) => vocabulary = Some(ready),
        None => {}
    }
    if let Some(told) = model.eos {
        eos = told;
    }
    let unknown = bos.iter().chain(&eos).find(|id| **id as usize >= vocab_size);
    ensure!(unknown.is_none(), "BOS or EOS is token {}, and there are {vocab_size}", unknown.unwrap_or(&0));
    let mut header = Header::new(Version::V1, model.config).with_tokens(SpecialTokens::new(&bos, &eos)?);
    if let Some(vocabulary) = &vocabulary {
        template::tokenizer(vocabulary, &header)?;
    }
    match template.as_deref().map(|source| template::name(source, vocabulary.as_ref(), &header)) {
        Some(Ok(name)) => header = header.with_template(TemplateName::new(name)?),
        Some(Err(e)) => {
            note(format_args!("note: the model's chat template is left out, as it cannot be used here: {e:#}"));
            template = None;
        }
        None => {}
    }
    if header.template.as_str() != BESIDE {
        template = None; // the name says everything
    }
    Ok(Foreign { header, vocabulary, template, values: model.values })
}

fn open_llama2c(path: &Path, hints: &Hints, words: Option<Brought>) -> anyhow::Result<Foreign> {
    let (mut header, values) = llama2c::open(path)?;
    header.config.seq_len = seq_len(header.config.seq_len, hints)?;
    let vocabulary = match words {
        Some(Brought::Words(words)) => Some(words.pieces.fit(header.config.vocab_size)?),
        Some(Brought::Ready(vocabulary)) => Some(vocabulary),
        None => None,
    };
    let template = path.with_file_name(CHAT_TEMPLATE);
    let template = if header.template.as_str() == BESIDE { Some(read_text(&template)?) } else { None };
    Ok(Foreign { header, vocabulary, template, values })
}
