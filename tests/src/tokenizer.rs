//! Tokenizer files of pieces.

use infer_core::tokenizer::write;
use serde_json::{Value, json};

/// A tokenizer.bin of these pieces: the first has the best score.
pub fn file<P: AsRef<[u8]>>(max_token_length: u32, pieces: impl IntoIterator<Item = P>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, max_token_length, (0..).map(|i| -(i as f32)).zip(pieces)).unwrap();
    bytes
}

/// GPT-2's letter for a byte.
fn letter(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    if printable(&byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|byte| !printable(byte)).count();
    char::from_u32(0x100 + before as u32).unwrap()
}

/// A tokenizer.json on bytes with the tokens of ChatML and Llama 3, like SmolLM2's: first the added
/// tokens, `<|im_end|>` as token 2, then the 256 bytes from token 6 on, then a few merges.
pub fn byte_level_json() -> Value {
    let names =
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"];
    let mut pieces: Vec<String> = names.map(String::from).to_vec();
    pieces.extend((0..=255).map(|byte| letter(byte).to_string()));
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "< |", "| >", "i m", "im _"];
    pieces.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let added = |(id, name)| {
        json!({ "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": names.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect::<Value>(),
            "merges": merges,
        }
    })
}
