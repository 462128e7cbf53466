//! How byte-level vocabularies split a text into words: GGUF has names for it, tokenizer.json the
//! rules.

use serde_json::{Value, json};

/// Llama 3's words.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Qwen 2's words: Llama 3's, with one digit each.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Makes the `pre_tokenizer` of a tokenizer.json.
type Rules = fn() -> Value;

/// Names in `tokenizer.ggml.pre`. The first name of several for the same rules is the one to write.
const NAMES: [(&str, Rules); 6] = [
    ("llama-bpe", || split(LLAMA3)),
    ("llama3", || split(LLAMA3)),
    ("llama-v3", || split(LLAMA3)),
    ("smollm", || {
        let digits = json!({ "type": "Digits", "individual_digits": true });
        json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] })
    }),
    ("gpt-2", || byte_level(true)),
    ("qwen2", || split(QWEN2)),
];

/// The `pre_tokenizer` of tokenizer.json for a name in `tokenizer.ggml.pre`.
pub fn rules(name: &str) -> Option<Value> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, rules)| rules())
}

/// The name in `tokenizer.ggml.pre` for the `pre_tokenizer` of a tokenizer.json.
pub fn name(rules: &Value) -> Option<&'static str> {
    let rules = without_offsets(rules);
    NAMES.iter().find(|(_, known)| without_offsets(&known()) == rules).map(|(name, _)| *name)
}

fn split(pattern: &str) -> Value {
    let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

/// The rules without what they say about places in the text, which changes no id.
fn without_offsets(rules: &Value) -> Value {
    match rules {
        Value::Array(rules) => rules.iter().map(without_offsets).collect(),
        Value::Object(rules) => {
            let kept = rules.iter().filter(|(key, _)| *key != "trim_offsets");
            Value::Object(kept.map(|(key, value)| (key.clone(), without_offsets(value))).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_rules_are_found_from_each_other() {
        for (known, first) in
            [("llama-bpe", "llama-bpe"), ("llama3", "llama-bpe"), ("smollm", "smollm"), ("gpt-2", "gpt-2")]
        {
            let mut rules = rules(known).unwrap();
            assert_eq!(name(&rules), Some(first));
            rules["trim_offsets"] = false.into();
            assert_eq!(name(&rules), Some(first));
            rules["type"] = "Whitespace".into();
            assert_eq!(name(&rules), None);
        }
        assert!(self::rules("unheard of").is_none());
    }
}
