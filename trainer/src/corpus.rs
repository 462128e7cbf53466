//! Stories, one by one, from files of any size: JSON shards and plain text.
//!
//! - `.json`: an array of objects with a field `story` (or `text`), as in TinyStories_all_data;
//! - `.jsonl`: such objects one after the other;
//! - anything else: plain text with a separator between stories.
//!
//! Nothing but the story at hand is kept in memory. White space around a story is dropped, and so are empty stories.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use memchr::memmem::Finder;
use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::bar;

/// What separates the stories of plain text, unless told otherwise.
pub const SEPARATOR: &str = "<|endoftext|>";
/// Where `trainer download` puts TinyStories.
pub const DEFAULT: &str = "data/TinyStories_all_data";
/// Most bytes of one story. More is likely a wrong separator, and would not be streaming.
const MAX_STORY: usize = 16 << 20;
const BLOCK: usize = 1 << 18;

/// A file, or a range of a plain text: the stories that begin in it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Piece {
    /// The file.
    pub path: PathBuf,
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Stories that are not empty.
    pub stories: u64,
    /// Stories of nothing but white space, which are skipped.
    pub empty: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.stories += more.stories;
        self.empty += more.empty;
    }
}

/// The separator of a plain text, from the command line: `\n` and `\t` are what they are in Rust.
#[derive(Clone, Debug)]
pub struct Separator(String);

impl FromStr for Separator {
    type Err = String;

    fn from_str(text: &str) -> Result<Separator, String> {
        match text.replace("\\n", "\n").replace("\\t", "\t") {
            empty if empty.is_empty() => Err("is empty".into()),
            text => Ok(Separator(text)),
        }
    }
}

impl Default for Separator {
    fn default() -> Separator {
        Separator(SEPARATOR.into())
    }
}

impl fmt::Display for Separator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.replace('\n', "\\n").replace('\t', "\\t"))
    }
}

impl std::ops::Deref for Separator {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The folder of a vocabulary and its shards, unless told otherwise.
pub fn default_folder(vocab_size: usize) -> PathBuf {
    format!("data/tok{vocab_size}").into()
}

/// Names of files and folders for a message.
pub fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A bar for this many bytes of corpus.
pub fn progress(bytes: u64) -> ProgressBar {
    bar::new(bytes, "{bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
}

/// Receives each story, trimmed and not empty.
pub type Each<'a> = &'a mut dyn FnMut(&str) -> anyhow::Result<()>;

/// The files that the paths name, a folder standing for its `.json`, `.jsonl` and `.txt` files in order of their names.
///
/// # Errors
/// A path that is not there, and a folder without such files.
pub fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    for path in paths {
        let in_path = || format!("corpus {}", path.display());
        if !path.metadata().with_context(in_path)?.is_dir() {
            pieces.push(whole(path.clone())?);
            continue;
        }
        let entries: Vec<_> = path.read_dir().and_then(Iterator::collect).with_context(in_path)?;
        let mut found: Vec<_> = entries.into_iter().map(|entry: std::fs::DirEntry| entry.path()).collect();
        found.retain(|file| matches!(extension(file), "json" | "jsonl" | "txt"));
        ensure!(!found.is_empty(), "corpus {} has no .json, .jsonl or .txt file", path.display());
        found.sort();
        for file in found {
            pieces.push(whole(file)?);
        }
    }
    Ok(pieces)
}

fn whole(path: PathBuf) -> anyhow::Result<Piece> {
    let metadata = path.metadata().with_context(|| format!("corpus {}", path.display()))?;
    ensure!(metadata.is_file(), "corpus {} is not a regular file", path.display());
    Ok(Piece { path, start: 0, end: metadata.len() })
}

impl Piece {
    /// Whether it can be cut anywhere: plain text can, JSON cannot.
    pub fn is_text(&self) -> bool {
        !matches!(extension(&self.path), "json" | "jsonl")
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Hands every story to `each`; `progress` advances by the bytes read.
    ///
    /// # Errors
    /// What `each` returns, and a file that cannot be read, is no JSON or no UTF-8, with its name and the place.
    pub fn read(&self, separator: &str, progress: &ProgressBar, each: Each<'_>) -> anyhow::Result<Counts> {
        let mut stories = Stories { each, counts: Counts::default(), failed: None };
        let file = File::open(&self.path).with_context(|| format!("corpus {}", self.path.display()))?;
        let result = if self.is_text() {
            self.read_text(file, separator, progress, &mut stories)
        } else {
            self.read_json(progress.wrap_read(file), &mut stories)
        };
        match stories.failed {
            Some(e) => Err(e),
            None => result.with_context(|| format!("corpus {}", self.path.display())).map(|()| stories.counts),
        }
    }

    fn read_json(&self, file: impl Read, stories: &mut Stories<'_>) -> anyhow::Result<()> {
        let mut file = BufReader::with_capacity(BLOCK, file);
        let is_array = file.fill_buf()?.trim_ascii_start().starts_with(b"[");
        let mut json = serde_json::Deserializer::from_reader(file);
        if is_array {
            stories.deserialize(&mut json)?;
            return Ok(json.end()?);
        }
        for story in json.into_iter::<Story>() {
            stories.give(&story?.story)?;
        }
        Ok(())
    }

    /// A story begins at the start of the file and where a separator ends; it lasts up to the next separator. Each
    /// belongs to the piece in which it begins, so that pieces that share no byte share no story.
    fn read_text(
        &self,
        mut file: File,
        separator: &str,
        progress: &ProgressBar,
        stories: &mut Stories<'_>,
    ) -> anyhow::Result<()> {
        let finder = Finder::new(separator);
        let width = separator.len();
        ensure!(width > 0, "the separator is empty");
        let mut offset = self.start.saturating_sub(width as u64); // of text[0] in the file
        file.seek(SeekFrom::Start(offset))?;
        // text[..head] is the separator before the story. A separator may overlap the one before, as blank lines do.
        let (mut text, mut head, mut searched) = (Vec::new(), 0, 0);
        let mut inside = self.start == 0;
        loop {
            let mut begin = 0;
            while let Some(i) = finder.find(&text[begin + searched..]) {
                let end = begin + searched + i;
                if inside {
                    stories.give_bytes(&text[(begin + head).min(end)..end], offset + (begin + head) as u64)?;
                }
                (begin, head, searched, inside) = (end, width, 1, true);
                if offset + (begin + head) as u64 >= self.end {
                    return Ok(());
                }
            }
            text.drain(..begin);
            offset += begin as u64;
            searched = text.len().saturating_sub(width - 1).max(searched);
            if text.len() > MAX_STORY {
                bail!("no separator {separator:?} within {MAX_STORY} bytes from byte {offset} on: see --separator");
            }
            let read = file.by_ref().take(BLOCK as u64).read_to_end(&mut text)?;
            progress.inc(read as u64);
            if read == 0 {
                // What follows the last separator is a story only if there is something.
                let rest = if inside { &text[head..] } else { &[] };
                return if rest.trim_ascii().is_empty() {
                    Ok(())
                } else {
                    stories.give_bytes(rest, offset + head as u64)
                };
            }
        }
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

#[derive(Deserialize)]
struct Story {
    #[serde(alias = "text")]
    story: String,
}

struct Stories<'a> {
    each: Each<'a>,
    counts: Counts,
    /// What `each` returned: serde's errors cannot carry it.
    failed: Option<anyhow::Error>,
}

impl Stories<'_> {
    fn give_bytes(&mut self, story: &[u8], offset: u64) -> anyhow::Result<()> {
        let story = std::str::from_utf8(story)
            .map_err(|e| anyhow!("not valid UTF-8 at byte {}: convert it to UTF-8", offset + e.valid_up_to() as u64))?;
        Ok(self.give(story)?)
    }

    fn give(&mut self, story: &str) -> Result<(), io::Error> {
        // A byte order mark counts as white space.
        let story = story.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if story.is_empty() {
            self.counts.empty += 1;
            return Ok(());
        }
        self.counts.stories += 1;
        (self.each)(story).map_err(|e| {
            self.failed = Some(e);
            io::ErrorKind::Other.into()
        })
    }
}

impl<'de> DeserializeSeed<'de> for &mut Stories<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Stories<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects with a field `story`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(Story { story }) = array.next_element()? {
            self.give(&story).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever a text is cut, its pieces together have every story once, separators that overlap included.
    #[test]
    fn pieces_share_no_story_and_lose_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        for (text, separator) in
            [("one--two---é----four--", "--"), ("one|two||three", "|"), ("--", "--"), ("one", "--")]
        {
            std::fs::write(&path, text).unwrap();
            let read = |start: usize, end: usize| {
                let mut stories = Vec::new();
                let piece = Piece { path: path.clone(), start: start as u64, end: end as u64 };
                piece.read(separator, &ProgressBar::hidden(), &mut |story| {
                    stories.push(story.to_string());
                    Ok(())
                })?;
                anyhow::Ok(stories)
            };
            let whole = read(0, text.len()).unwrap();
            let expected: Vec<&str> = text.split(['-', '|']).filter(|story| !story.is_empty()).collect();
            assert_eq!(whole, expected);
            for cut in 1..text.len() {
                let parts = [read(0, cut).unwrap(), read(cut, text.len()).unwrap()].concat();
                assert_eq!(parts, whole, "{text:?} cut at {cut}");
            }
        }
    }
}
