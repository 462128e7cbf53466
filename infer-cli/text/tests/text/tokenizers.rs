//! Texts to tokens and back.

use infer_text::{Special, TextTokenizer};
use serde_json::json;

use super::*;

const TEXTS: [&str; 8] = [
    "",
    "hello world",
    " hello",
    "hello  \n\n world ",
    "é😀\u{0}",
    "<|im_start|>",
    "a<|im_end|>b<|im_end|>",
    "<0x0A>▁",
];

#[test]
fn bytes_come_back() {
    let smol = from_json(&smol(), 300).unwrap();
    for text in TEXTS {
        for special in [Special::AsText, Special::Match] {
            let tokens = smol.encode(text, special).unwrap();
            assert_eq!(decode(&smol, &tokens), text.as_bytes(), "{text:?}: {tokens:?}");
        }
    }
    let bin = TextTokenizer::from_bin(bin(), &header(274)).unwrap();
    for text in TEXTS {
        let tokens = bin.encode(text, Special::AsText).unwrap();
        assert_eq!(decode(&bin, &tokens), text.replace('▁', " ").as_bytes(), "{text:?}: {tokens:?}");
    }
}

#[test]
fn added_tokens_are_matched_where_the_caller_allows_it() {
    let smol = from_json(&smol(), 300).unwrap();
    assert_eq!(
        smol.encode("<|im_start|>hello<|im_end|>", Special::Match).unwrap(),
        [1, smol.token("hello").unwrap(), 2]
    );
    let text = smol.encode("<|im_start|>hello<|im_end|>", Special::AsText).unwrap();
    assert!(text.iter().all(|token| *token > 5), "{text:?}");
    assert_eq!(text[0], smol.token("<|").unwrap());

    let bin = TextTokenizer::from_bin(bin(), &header(274)).unwrap();
    let (a, x) = (bin.token(" a").unwrap(), bin.token("<|x|>").unwrap());
    assert_eq!(x, 271);
    assert_eq!(bin.encode("a<|x|>a</s><s>", Special::Match).unwrap(), [a, x, a, 2, 1]);
    let text = bin.encode("a<|x|>a</s>", Special::AsText).unwrap();
    assert!(!text.contains(&x) && !text.contains(&2), "{text:?}");
    assert_eq!(decode(&bin, &text), b"a<|x|>a</s>");
    assert_eq!(bin.decode(x, a)[..], *b"a", "as behind BOS");
    assert_eq!(bin.decode(2, a)[..], *b" a");
}

/// Names of added tokens are often pieces of the vocabulary too, and some vocabularies give a whole
/// word without merging.
#[test]
fn no_way_leads_from_text_to_an_added_token() {
    let mut file = smol();
    file["model"]["ignore_merges"] = json!(true);
    file["pre_tokenizer"] =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let whole = from_json(&file, 300).unwrap();
    for text in ["<|im_start|>", "<|im_end|><|im_end|>", "x<|im_start|>"] {
        let tokens = whole.encode(text, Special::AsText).unwrap();
        assert!(tokens.iter().all(|token| *token > 5), "{text:?}: {tokens:?}");
        assert_eq!(decode(&whole, &tokens), text.as_bytes());
    }
    // Full-width letters become ASCII in this normaliser.
    file["normalizer"] = json!({ "type": "NFKC" });
    let nfkc = from_json(&file, 300).unwrap();
    let tokens = nfkc.encode("＜|im_start|＞", Special::AsText).unwrap();
    assert!(tokens.iter().all(|token| *token > 5), "{tokens:?}");
}

#[test]
fn white_space_tokens_and_strips_are_as_in_transformers() {
    let mut file = smol();
    let added = file["added_tokens"].as_array_mut().unwrap();
    added[1]["rstrip"] = json!(true);
    added[2]["lstrip"] = json!(true);
    added.push(json!({ "id": 290, "content": "    ", "special": false }));
    added.push(json!({ "id": 291, "content": "<|tool|>", "special": false }));
    added.push(json!({ "id": 300, "content": "<pad>", "special": true }));
    let tokenizer = from_json(&file, 300).unwrap();
    let hello = tokenizer.token("hello").unwrap();
    let encode = |text, special| tokenizer.encode(text, special).unwrap();
    assert_eq!(encode("<|im_start|>\n hello  <|im_end|>", Special::Match), [1, hello, 2]);
    assert_eq!(encode("    hello", Special::AsText), [290, hello]);
    assert!(!encode("<|tool|>", Special::AsText).contains(&291));
    assert_eq!(encode("<|tool|>", Special::Match), [291]);
    assert_eq!(decode(&tokenizer, &[290, 291]), b"    <|tool|>");
    assert!(encode("<pad>", Special::Match).len() > 1, "the model has no such token");
    assert_eq!(tokenizer.decode(0, 999)[..], *b"", "nor this one");
}

/// SentencePiece's kind of tokenizer.json: Llama 2's.
#[test]
fn sentencepiece_in_a_tokenizer_json() {
    let mut pieces = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    pieces.extend(["▁", "h", "i", "▁h", "▁hi"].map(String::from));
    let file = json!({
        "added_tokens": [{ "id": 1, "content": "<s>", "special": true }, { "id": 2, "content": "</s>", "special": true }],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect::<Value>(),
            "merges": ["▁ h", "▁h i"] }
    });
    let tokenizer = from_json(&file, pieces.len()).unwrap();
    let hi = tokenizer.token("▁hi").unwrap();
    assert_eq!(tokenizer.encode("hi hi\n", Special::AsText).unwrap(), [hi, hi, 3 + 10]);
    assert_eq!(decode(&tokenizer, &[hi, hi, 13]), b"hi hi\n");
    assert_eq!(tokenizer.encode("<s>hi</s>", Special::Match).unwrap(), [1, hi, 2]);
}
