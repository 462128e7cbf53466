//! Makes a tokenizer.json of byte-level BPE, as Hugging Face's converters do.

use serde_json::{Map, Value, json};

/// The parts of a vocabulary.
pub struct ByteLevel {
    /// Ids of tokens, whose bytes are spelled in the [`alphabet`].
    pub vocab: Map<String, Value>,
    /// The pairs that merge, the best first: "left right", or a list of both.
    pub merges: Vec<Value>,
    /// Special tokens with their ids.
    pub special: Vec<(usize, String)>,
    /// How a text is split into words.
    pub rules: Value,
    /// Words that are tokens are not cut and merged again.
    pub ignore_merges: bool,
}

impl ByteLevel {
    /// The contents of the file.
    ///
    /// # Errors
    /// None for the parts that there are.
    pub fn into_json(self) -> anyhow::Result<Vec<u8>> {
        let added = self.special.into_iter().map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        });
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": self.rules,
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.ignore_merges, "vocab": self.vocab, "merges": self.merges,
            },
        });
        Ok(serde_json::to_vec_pretty(&json)?)
    }
}

/// GPT-2's characters for the 256 bytes: bytes that are no visible character of Latin 1 get one
/// from U+0100 on.
pub fn alphabet() -> [char; 256] {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| match byte as u8 {
        visible @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(visible),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        }
    })
}
