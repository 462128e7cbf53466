//! The models of tests/fixtures go in and out again.

use std::fs;
use std::path::{Path, PathBuf};

use infer_core::Model;
use infer_text::{Message, Special, Template, TextTokenizer};
use serde::Deserialize;

use crate::succeeds;

#[derive(Deserialize)]
struct Expected {
    chat: Chat,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Said>,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// Imports a fixture and returns model.bin, in a folder of its own.
fn import(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    succeeds(folder.path(), &["import", fixture(name).to_str().unwrap(), "model.bin"]);
    let model = folder.path().join("model.bin");
    (folder, model)
}

/// Weights, sizes, RoPE, eps, special tokens and templates are the same after a round trip.
#[test]
fn exports_come_back_unchanged() {
    for name in ["llama", "llama3", "mistral", "linear", "meta", "meta3", "llama2c/ckpt.pt"] {
        let (folder, model) = import(name);
        let folder = folder.path();
        if !["tokenizer.bin", "tokenizer.json"].iter().any(|name| folder.join(name).exists()) {
            succeeds(folder, &["import", fixture("llama/tokenizer.model").to_str().unwrap(), "tokenizer.bin"]);
        }
        for out in ["out.gguf", "out"] {
            succeeds(folder, &["export", "model.bin", out]);
            let back = format!("from-{out}/model.bin");
            succeeds(folder, &["import", out, &back]);
            let [ours, theirs] = [&model, &folder.join(&back)].map(|path| fs::read(path).unwrap());
            let [before, after] = [&ours, &theirs].map(|bytes| Model::from_bytes(bytes).unwrap().header());
            assert_eq!(after, before, "{name} from {out}");
            assert!(theirs == ours, "weights of {name} from {out}");
        }
    }
}

#[test]
fn a_chat_has_the_ids_that_transformers_gives_it() {
    let expected = fs::read(fixture("llama3").join("expected.json")).unwrap();
    let Expected { chat: Chat { messages, ids } } = serde_json::from_slice(&expected).unwrap();
    let (folder, model) = import("llama3");
    let header = Model::from_bytes(&fs::read(&model).unwrap()).unwrap().header();
    let tokenizer = TextTokenizer::beside(&model, &header).unwrap();
    let messages: Vec<Message> = messages.into_iter().map(|said| Message::new(&said.role, said.content)).collect();
    let template = Template::of(&header, folder.path()).unwrap().unwrap();
    let rendered = template.render(&tokenizer, &messages, true).unwrap().tokens;
    // transformers lets a user write <|eot_id|>, and gives it the token's id; here it is text.
    let users = tokenizer.encode(", <|eot_id|>!", Special::AsText).unwrap();
    let theirs = tokenizer.encode(", <|eot_id|>!", Special::Match).unwrap();
    let at = rendered.windows(users.len()).position(|ids| ids == users).expect("the user's text");
    assert_eq!([&rendered[..at], &theirs, &rendered[at + users.len()..]].concat(), ids);
}
