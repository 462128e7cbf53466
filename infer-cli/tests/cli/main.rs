//! The program as a person runs it: golden outputs of llama2.c, and what bad input gets.

mod chat;
mod commands;
mod compare;
mod default_model;
mod files;
mod flags;
mod golden;
mod serial;
mod story;
mod templates;
mod terminal;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use infer_core::Config;
use infer_core::format::Version;
use tests::random::{RandomModel, config};
use tests::shared;

fn cli() -> Command {
    Command::new(env!("CARGO_BIN_EXE_infer-cli"))
}

fn run(args: &[&str]) -> Output {
    cli().args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs in this folder.
fn run_in(folder: &Path, args: &[&str]) -> Output {
    cli().args(args).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    let pipes = cli().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = pipes.unwrap();
    let _ = child.stdin.take().unwrap().write_all(input); // a program that fails early does not read it
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

/// One clear message: the exit code, no panic, and all of these words.
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(stdout(output)).unwrap()
}

/// Paths of a real model and its tokenizer.
fn stories() -> Option<(String, String)> {
    let path = |name: &str| shared::file(&format!("data/models/stories260K/{name}")).map(|p| p.display().to_string());
    Some((path("stories260K.bin")?, path("tok512.bin")?))
}

/// A folder of its own for a test's files, empty.
fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A tokenizer.bin whose tokens from 259 on are these pieces.
fn tokenizer_file(pieces: &[&str], vocab_size: usize) -> Vec<u8> {
    let mut all: Vec<String> = ["<unk>", "\n<s>\n", "\n</s>\n"].map(String::from).to_vec();
    all.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    all.extend(pieces.iter().map(|piece| piece.to_string()));
    all.resize(vocab_size, "filler".into());
    ::tests::tokenizer::file(27, all)
}

/// A random model with tokenizer.bin beside it, changed by `change`.
fn random_model(test: &str, change: impl FnOnce(&mut RandomModel)) -> (PathBuf, String) {
    let folder = scratch(test);
    let mut model = RandomModel::new(config(8, 5, 2, 4, 2), 3);
    change(&mut model);
    let path = folder.join("model.bin");
    std::fs::write(&path, model.to_file(Version::V0).bytes()).unwrap();
    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&[" ", "a", "b", " a"], 300)).unwrap();
    (folder, path.display().to_string())
}
