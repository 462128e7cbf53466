//! Reads real models, tokenizers and golden outputs. They lie in `shared/` beside the checkout and
//! are not part of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

/// The file `shared/{path}`, or `None`, with a printed line, when there is no such folder: a test
/// then skips. On CI the folder must be there.
///
/// # Panics
/// When it is absent and the environment says `CI=true`.
pub fn file(path: &str) -> Option<PathBuf> {
    let shared = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    if shared.is_dir() {
        return Some(shared.join(path));
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "on CI the folder shared/ must lie beside the checkout");
    skip("the folder shared/ is not beside the checkout");
    None
}

/// Reports that the running test is skipped. The line goes to standard error past the
/// capture of the test harness, and into the file that `SKIPPED_TESTS` names, which `./ci.sh test`
/// counts at its end.
///
/// # Panics
/// When that file cannot be written.
pub fn skip(why: &str) {
    let binary = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let test = format!("{} {}", binary.unwrap_or_default(), std::thread::current().name().unwrap_or_default());
    let _ = std::io::stderr().write_all(format!("skipped: {test}: {why}\n").as_bytes()); // eprintln! is captured
    if let Some(path) = std::env::var_os("SKIPPED_TESTS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(format!("{why}\t{test}\n").as_bytes())).expect("SKIPPED_TESTS");
    }
}

/// The bytes of `shared/{path}`.
///
/// # Panics
/// When the folder is there and the file cannot be read.
pub fn bytes(path: &str) -> Option<Vec<u8>> {
    file(path).map(|path| std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// The JSON document `shared/{path}`.
///
/// # Panics
/// When the folder is there and the file cannot be read as `T`.
pub fn json<T: DeserializeOwned>(path: &str) -> Option<T> {
    bytes(path).map(|bytes| serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{path}: {e}")))
}

/// The JSON values on the lines of `shared/{path}`.
///
/// # Panics
/// When the folder is there and a line cannot be read as `T`.
pub fn json_lines<T: DeserializeOwned>(path: &str) -> Option<Vec<T>> {
    let bytes = bytes(path)?;
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    Some(lines.map(|line| serde_json::from_slice(line).unwrap_or_else(|e| panic!("{path}: {e}"))).collect())
}
