//! Texts as people hand them over: in files, through pipes, on standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, ensure};

use crate::session::Usage;

/// The most bytes of a prompt: more than any context holds.
const LONGEST_PROMPT: u64 = 1 << 24;

/// Reads a prompt from a file or a pipe, or from standard input for `-`, and drops the end of its
/// last line.
pub fn read_prompt(path: &Path) -> anyhow::Result<String> {
    let (name, file) = open(path, "prompt")?;
    let mut text = read(&name, file.take(LONGEST_PROMPT + 1))?;
    ensure!(text.len() as u64 <= LONGEST_PROMPT, "{name} is larger than {LONGEST_PROMPT} bytes: shorten it");
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Reads a whole text. Line ends become `\n`, and a byte order mark is dropped.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let (name, file) = open(path, "text")?;
    read(&name, file)
}

/// Reads standard input, byte for byte.
pub fn read_stdin() -> anyhow::Result<String> {
    read_exactly("standard input", io::stdin().lock())
}

/// Opens a file or a pipe, or standard input for `-`. Returns its name in messages, too.
fn open(path: &Path, what: &str) -> anyhow::Result<(String, Box<dyn Read>)> {
    if path == Path::new("-") {
        return Ok(("standard input".into(), Box::new(io::stdin().lock())));
    }
    let name = format!("{what} {}", path.display());
    let about = path.metadata().with_context(|| name.clone())?;
    ensure!(!about.is_dir(), "{name} is a folder: give a file");
    ensure!(!is_device(&about), "{name} is a device: give a file, or - for standard input");
    let file = File::open(path).with_context(|| name.clone())?;
    Ok((name, Box::new(file)))
}

/// Whether the file is a device, which may have no end.
#[cfg(unix)]
fn is_device(about: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    about.file_type().is_char_device() || about.file_type().is_block_device()
}

#[cfg(not(unix))]
fn is_device(_: &std::fs::Metadata) -> bool {
    false
}

fn read(name: &str, input: impl Read) -> anyhow::Result<String> {
    Ok(plain(&read_exactly(name, input)?))
}

fn read_exactly(name: &str, mut input: impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).with_context(|| name.to_owned())?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let problem = format!("{name} is not valid UTF-8 from byte {at} on: convert it to UTF-8");
        if name == "standard input" { Usage(problem).into() } else { anyhow::Error::msg(problem) }
    })
}

/// Makes all line ends `\n` and drops the byte order mark: models were trained on such text and
/// predict other text worse.
fn plain(text: &str) -> String {
    text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_one() {
        assert_eq!(plain("\u{feff}a\r\nb\rc\n\r\n\r\n\r\r\nd\u{feff}"), "a\nb\nc\n\n\n\n\nd\u{feff}");
    }
}
