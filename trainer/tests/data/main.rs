//! Goes from text to token shards as a person does: download, train-vocab, pretokenize.

mod download;
mod pretokenize;
mod vocab;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use infer_core::OwnedTokenizer;

fn trainer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to success and returns standard error.
fn run(args: &[&str]) -> String {
    let output = trainer(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

/// Checks that a run has failed with one line of error that has all of these words.
fn assert_fails(output: &Output, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !message.contains("panicked"), "{message}");
    assert!(!message.contains("Caused by"), "several lines: {message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

/// A folder of its own for a test's files, empty.
fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The tokenizer.bin in a folder.
fn vocabulary(folder: &Path) -> OwnedTokenizer<Vec<u8>> {
    OwnedTokenizer::whole(std::fs::read(folder.join("tokenizer.bin")).unwrap()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Distinct stories of a few words each.
fn stories(n: usize) -> Vec<String> {
    const WORDS: [&str; 8] = ["Once", "upon", "a", "time", "Lily", "saw", "the", "big"];
    let mut rng = fastrand::Rng::with_seed(7);
    let mut story = |i| {
        let words: Vec<&str> = (0..rng.usize(5..90)).map(|_| WORDS[rng.usize(..WORDS.len())]).collect();
        format!("{} {i}.", words.join(" "))
    };
    (0..n).map(&mut story).collect()
}
