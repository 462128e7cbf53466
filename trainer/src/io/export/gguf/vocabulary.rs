//! The vocabulary of a model in the metadata of a GGUF file.

use anyhow::{Context, ensure};
use infer_core::format::Header;
use serde_json::Value as Json;

use super::value::Value;
use crate::io::export::pieces::{self, Kind};
use crate::io::pretokenizers;
use crate::io::vocabulary::Vocabulary;

/// Types of tokens, as llama.cpp numbers them.
const TEXT: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The keys of a vocabulary and their values.
///
/// # Errors
/// The vocabulary is damaged, has more tokens than the model, or splits texts by rules that GGUF
/// has no name for.
pub fn metadata(vocabulary: &Vocabulary, header: &Header) -> anyhow::Result<Vec<(String, Value)>> {
    let mut keys = match vocabulary {
        Vocabulary::Bin(bytes) => sentencepiece(bytes, header)?,
        Vocabulary::Json(bytes) => byte_level(bytes, header)?,
    };
    if let Some(bos) = header.tokens.bos().first() {
        keys.push(("bos_token_id", Value::U32(*bos)));
    }
    let ends = ["eos_token_id", "eot_token_id", "eom_token_id"];
    keys.extend(ends.into_iter().zip(header.tokens.eos()).map(|(key, id)| (key, Value::U32(*id))));
    keys.push(("add_bos_token", Value::Bool(!header.tokens.bos().is_empty())));
    keys.push(("add_eos_token", Value::Bool(false)));
    Ok(keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
}

/// A vocabulary with scores, which llama.cpp calls by the name of the model.
fn sentencepiece(bytes: &[u8], header: &Header) -> anyhow::Result<Vec<(&'static str, Value)>> {
    let pieces = pieces::read(bytes, header.config.vocab_size)?;
    let kind = |kind| match kind {
        Kind::Unknown => UNKNOWN,
        Kind::Control => CONTROL,
        Kind::Byte => BYTE,
        Kind::Text => TEXT,
    };
    Ok(vec![
        ("model", Value::String("llama".into())),
        ("pre", Value::String("default".into())),
        ("scores", Value::F32s(pieces.iter().map(|piece| piece.score).collect())),
        ("token_type", Value::I32s(pieces.iter().map(|piece| kind(piece.kind)).collect())),
        ("tokens", Value::Strings(pieces.into_iter().map(|piece| piece.text).collect())),
        ("unknown_token_id", Value::U32(0)),
        ("add_space_prefix", Value::Bool(true)),
    ])
}

/// A byte-level vocabulary with merges and rules to split a text into words.
fn byte_level(bytes: &[u8], header: &Header) -> anyhow::Result<Vec<(&'static str, Value)>> {
    let json: Json = serde_json::from_slice(bytes).context("tokenizer.json")?;
    let pre = &json["pre_tokenizer"];
    let pre = pretokenizers::name(pre).with_context(|| {
        format!("tokenizer.json: GGUF has no name for the pre_tokenizer {pre}: export to a folder instead")
    })?;
    let vocab_size = header.config.vocab_size;
    let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; vocab_size];
    let mut put = |text: &str, id: Option<u64>, kind| {
        let at = id.and_then(|id| usize::try_from(id).ok()).filter(|at| *at < vocab_size);
        let at = at
            .with_context(|| format!("tokenizer.json: token {text:?} has no id below the {vocab_size} of the model"))?;
        (tokens[at], types[at]) = (text.to_owned(), kind);
        anyhow::Ok(())
    };
    let vocab = json["model"]["vocab"].as_object().context("tokenizer.json: model.vocab is missing")?;
    for (text, id) in vocab {
        put(text, id.as_u64(), TEXT)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        put(added["content"].as_str().unwrap_or_default(), added["id"].as_u64(), kind)?;
    }
    let merges = json["model"]["merges"].as_array().context("tokenizer.json: model.merges is missing")?;
    let merges: Option<Vec<String>> = merges.iter().map(merge).collect();
    let merges = merges.context("tokenizer.json: a merge is no pair of tokens")?;
    ensure!(json["model"]["type"] == "BPE", "tokenizer.json: model.type is {}, not \"BPE\"", json["model"]["type"]);
    Ok(vec![
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String(pre.into())),
        ("tokens", Value::Strings(tokens)),
        ("token_type", Value::I32s(types)),
        ("merges", Value::Strings(merges)),
    ])
}

/// A merge as "left right". Older files of the library have it so, newer ones as a pair.
fn merge(merge: &Json) -> Option<String> {
    match merge {
        Json::String(merge) => Some(merge.clone()),
        Json::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}
