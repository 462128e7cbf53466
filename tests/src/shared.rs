//! Real models, tokenizers and golden outputs, which lie in `shared/` beside the checkout and are not part of it.

use std::path::PathBuf;

use serde::de::DeserializeOwned;

/// The file `shared/{path}`, or `None`, with a printed line, when there is no such folder: a test then skips. On CI the
/// folder must be there.
///
/// # Panics
/// When it is absent and the environment says `CI=true`.
pub fn file(path: &str) -> Option<PathBuf> {
    let shared = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    if shared.is_dir() {
        return Some(shared.join(path));
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "on CI the folder shared/ must lie beside the checkout");
    println!("skipped: the folder shared/ is not beside the checkout");
    None
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
