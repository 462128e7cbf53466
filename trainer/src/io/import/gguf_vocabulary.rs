//! The vocabulary in a GGUF file: SentencePiece's pieces with their scores become a tokenizer.bin,
//! byte-level BPE a tokenizer.json.

use anyhow::{Context, bail, ensure};
use serde_json::Map;

use crate::io::import::byte_level::ByteLevel;
use crate::io::import::gguf_header::{Field, Header, MERGES, SCORES, TOKENS, TYPES};
use crate::io::import::tensors::shown;
use crate::io::import::tokenizer_json;
use crate::io::import::vocabulary::{Kind, Pieces, Words, scored};
use crate::io::pretokenizers::rules;

/// Names of splitting rules that put BOS in front of a text unless the file says otherwise.
const WITH_BOS: [&str; 4] = ["llama-bpe", "llama3", "llama-v3", "falcon3"];

/// The vocabulary of a file; `None` if it has none.
///
/// # Errors
/// It is damaged, or of a kind that is not known.
pub fn read(header: &Header) -> anyhow::Result<Option<Words>> {
    let Some(model) = header.text("tokenizer.ggml.model")? else { return Ok(None) };
    let tokens = header.texts(TOKENS).with_context(|| format!("{TOKENS} is missing"))?;
    let types = types(header, tokens.len())?;
    let pre = header.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let adds_bos = header.flag("tokenizer.ggml.add_bos_token");
    let id = |name: &str| header.size(name).ok().flatten().map(|id| id as u32);
    let (pieces, adds_bos) = match model {
        "llama" => {
            let adds_space = header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
            ensure!(
                adds_space,
                "tokenizer.ggml.add_space_prefix is false, and llama2.c puts a space before every text"
            );
            (Pieces::Scored(sentencepiece(header, tokens, &types)?), adds_bos.unwrap_or(true))
        }
        "gpt2" => {
            let bytes = byte_level(tokens, &types, header.texts(MERGES).unwrap_or_default(), pre)?;
            (tokenizer_json::read(&bytes, None)?.pieces, adds_bos.unwrap_or(WITH_BOS.contains(&pre)))
        }
        other => bail!("tokenizer.ggml.model is {:?}: \"llama\" and \"gpt2\" can be read", shown(other)),
    };
    let bos = id("tokenizer.ggml.bos_token_id").filter(|_| adds_bos);
    let mut eos = Vec::new();
    for name in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        eos.extend(id(name).filter(|id| !eos.contains(id)));
    }
    let template = header.text("tokenizer.chat_template")?.map(String::from);
    Ok(Some(Words { pieces, bos: bos.into_iter().collect(), eos, template }))
}

/// What each token is for.
fn types(header: &Header, n: usize) -> anyhow::Result<Vec<Kind>> {
    let Some(Field::Ints(types)) = header.get(TYPES) else { return Ok(vec![Kind::Text; n]) };
    ensure!(types.len() == n, "{TYPES} has {} elements, and there are {n} tokens", types.len());
    let kind = |kind: &i32| match kind {
        1 => Kind::Text,
        6 => Kind::Byte,
        _ => Kind::Special, // unknown, control, user-defined, unused
    };
    Ok(types.iter().map(kind).collect())
}

fn sentencepiece(header: &Header, tokens: &[String], types: &[Kind]) -> anyhow::Result<Vec<(f32, String)>> {
    let Some(Field::Floats(scores)) = header.get(SCORES) else { bail!("{SCORES} is missing") };
    ensure!(
        scores.len() == tokens.len(),
        "{SCORES} has {} elements, and there are {} tokens",
        scores.len(),
        tokens.len()
    );
    let pieces = tokens.iter().zip(scores).zip(types);
    scored(pieces.map(|((piece, score), kind)| (piece.clone(), *score, *kind)))
}

/// A tokenizer.json of byte-level BPE.
fn byte_level(tokens: &[String], types: &[Kind], merges: &[String], pre: &str) -> anyhow::Result<Vec<u8>> {
    let Some(rules) = rules(pre) else {
        bail!("tokenizer.ggml.pre is {:?}: how it splits a text into words is not known here", shown(pre));
    };
    let mut vocab = Map::new();
    let mut special = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        let there = vocab.insert(token.clone(), id.into());
        ensure!(there.is_none(), "token {:?} is there twice, at {} and {id}", shown(token), there.unwrap_or_default());
        if *kind == Kind::Special {
            special.push((id, token.clone()));
        }
    }
    let merges = merges.iter().map(|merge| merge.as_str().into()).collect();
    // Llama 3's words that are tokens are not cut and merged again.
    ByteLevel { vocab, merges, special, rules, ignore_merges: pre.starts_with("llama") }.into_json()
}
