//! The vocabulary of a Hugging Face folder, from tokenizer.json, tokenizer.model and
//! tokenizer_config.json.

use std::path::Path;

use anyhow::{Context, ensure};
use infer_text::CHAT_TEMPLATE;
use serde_json::Value;

use crate::io::import::file::{Fields, read_small, read_text};
use crate::io::import::vocabulary::{NEVER, Pieces, Words};
use crate::io::import::{sentencepiece, tokenizer_json};

/// A vocabulary of the tokenizers library.
pub const JSON: &str = "tokenizer.json";
/// A vocabulary of SentencePiece.
pub const MODEL: &str = "tokenizer.model";
const CONFIG: &str = "tokenizer_config.json";

/// The vocabulary of a folder; `None` if it has none.
///
/// # Errors
/// A file is damaged, or of a kind that is not known.
pub fn read(folder: &Path) -> anyhow::Result<Option<Words>> {
    let [json, model, config, template] = [JSON, MODEL, CONFIG, CHAT_TEMPLATE].map(|name| folder.join(name));
    let config = config.exists().then(|| Fields::read(&config)).transpose()?;
    let read_model = || {
        let bytes = read_small(&model, sentencepiece::MAX_MODEL)?;
        sentencepiece::read(&bytes).with_context(|| model.display().to_string())
    };
    let mut words = if json.exists() {
        // Beside a tokenizer.json, a tokenizer.model that cannot become a tokenizer.bin is not
        // needed.
        let from_model = model.exists().then(read_model).and_then(Result::ok);
        let bytes = read_small(&json, tokenizer_json::MAX_JSON)?;
        tokenizer_json::read(&bytes, from_model).with_context(|| json.display().to_string())?
    } else if model.exists() {
        let mut words = read_model()?;
        if let Some(config) = &config {
            if config.get("add_bos_token").is_some_and(|adds| adds == false) {
                words.bos.clear();
            }
            add_tokens(&mut words, config)?;
        }
        words
    } else {
        return Ok(None);
    };
    words.template = if template.exists() {
        Some(read_text(&template)?)
    } else {
        config.as_ref().and_then(|config| template_of(config.get("chat_template")?))
    };
    Ok(Some(words))
}

/// Appends the tokens that the configuration adds behind those of tokenizer.model.
fn add_tokens(words: &mut Words, config: &Fields) -> anyhow::Result<()> {
    let (Pieces::Scored(entries), Some(Value::Object(added))) = (&mut words.pieces, config.get("added_tokens_decoder"))
    else {
        return Ok(());
    };
    let content = |token: &Value| token.get("content").and_then(Value::as_str).map(String::from);
    let mut added: Vec<(usize, String)> =
        added.iter().filter_map(|(id, token)| Some((id.parse().ok()?, content(token)?))).collect();
    added.sort();
    for (id, token) in added.into_iter().filter(|(id, _)| *id >= entries.len()).collect::<Vec<_>>() {
        ensure!(
            id == entries.len(),
            "{}: added_tokens_decoder has token {id}, and none at {}",
            config.name,
            entries.len()
        );
        entries.push((NEVER, token));
    }
    Ok(())
}

/// The template: one text, or the one named "default" of several.
fn template_of(value: &Value) -> Option<String> {
    let named = |named: &&Value| named.get("name").is_some_and(|name| name == "default");
    let one = value.as_array().and_then(|several| several.iter().find(named)?.get("template"));
    one.unwrap_or(value).as_str().map(String::from)
}
