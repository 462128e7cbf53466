//! Writes a conversation as a text.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::source::folder_of;

/// Writes a conversation to a new file, or to one that holds its beginning.
pub fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = || format!("/save {}", path.display());
    ensure!(!text.is_empty(), "{}: nothing has been said", file());
    match path.metadata() {
        Ok(there) if !there.is_file() => bail!("{} is there and not a regular file: give another name", path.display()),
        Ok(_) if !text.as_bytes().starts_with(&std::fs::read(path).with_context(file)?) => {
            bail!("{} is there and holds something else: give another name", path.display())
        }
        _ => {}
    }
    let mut temporary = tempfile::NamedTempFile::new_in(folder_of(path)).with_context(file)?;
    temporary.write_all(text.as_bytes()).with_context(file)?;
    if path.exists() { temporary.persist(path) } else { temporary.persist_noclobber(path) }.with_context(file)?;
    Ok(())
}
