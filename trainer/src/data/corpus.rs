//! Reads stories, one by one, from files of any size: JSON and plain text.
//!
//! - `.json`, `.jsonl` and `.ndjson` files have stories as strings or objects, in an array or one
//!   after the other (json.rs);
//! - any other file is plain text with a separator between stories.
//!
//! Only the current story is in memory. Line ends of any kind become `\n`. White space around a
//! story is dropped, and so are empty stories.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::data::json;
use crate::data::separator::{Separator, line_ends};
use crate::report::bar;

/// The folder in which `trainer download` puts TinyStories.
pub const DEFAULT: &str = "data/TinyStories_all_data";
/// Most bytes of one story. A longer one likely means that the separator is wrong, and would have
/// to be held in memory.
const MAX_STORY: usize = 16 << 20;
/// Bytes per read.
const BLOCK: usize = 1 << 18;

/// The stories of a file, or those that begin in a range of a plain text.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Piece {
    /// The file.
    pub path: PathBuf,
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// Time of the file's last change, in nanoseconds since 1970. Folders of earlier versions do
    /// not have it.
    #[serde(default)]
    pub modified: Option<u64>,
}

impl PartialEq for Piece {
    fn eq(&self, other: &Piece) -> bool {
        let place = |piece: &Piece| (piece.start, piece.end);
        self.path == other.path && place(self) == place(other) && same_time(self.modified, other.modified)
    }
}

/// Whether two times are equal. A time that is not known equals any other.
fn same_time(one: Option<u64>, other: Option<u64>) -> bool {
    one.is_none() || other.is_none() || one == other
}

/// Numbers of the stories that were read and skipped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Stories that are not empty.
    pub stories: u64,
    /// Stories of white space alone, which are skipped.
    pub empty: u64,
    /// JSON nulls in the place of a story, which are skipped.
    pub null: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.stories += more.stories;
        self.empty += more.empty;
        self.null += more.null;
    }
}

/// Prints `12 stories`, and how many were skipped.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} stories", self.stories)?;
        match (self.empty, self.null) {
            (0, 0) => Ok(()),
            (empty, 0) => write!(f, " ({empty} empty skipped)"),
            (0, null) => write!(f, " ({null} null skipped)"),
            (empty, null) => write!(f, " ({empty} empty and {null} null skipped)"),
        }
    }
}

/// The default folder of a vocabulary and its shards.
pub fn default_folder(vocab_size: usize) -> PathBuf {
    format!("data/tok{vocab_size}").into()
}

/// Lists files and folders in a message.
pub fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A progress bar for this many bytes of corpus.
pub fn progress(bytes: u64) -> ProgressBar {
    bar::new(bytes, "{bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
}

/// A function that receives each story, trimmed and not empty.
pub type Each<'a> = &'a mut dyn FnMut(&str) -> anyhow::Result<()>;

/// A file of a corpus.
pub struct Named {
    /// The whole file.
    pub piece: Piece,
    /// Its path from the given folder on, with the name of that folder.
    pub name: PathBuf,
}

/// The files that a search has found.
#[derive(Default)]
pub struct Found {
    /// Files of stories, in the order in which they are read.
    pub files: Vec<Named>,
    /// Folders inside the given ones that are not read.
    pub skipped: Vec<PathBuf>,
}

/// Finds the files that the paths name. A folder stands for its `.json`, `.jsonl`, `.ndjson` and
/// `.txt` files in order of their names, and for those of the folders inside that `enter` accepts.
///
/// # Errors
/// A path does not exist, or a folder has no such files.
pub fn files(paths: &[PathBuf], enter: fn(&Path) -> bool) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for path in paths {
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        if !path.metadata().with_context(|| format!("corpus {}", path.display()))?.is_dir() {
            found.files.push(Named { piece: whole(path.clone())?, name });
            continue;
        }
        let before = found.files.len();
        add_folder(path, &name, enter, &mut found)?;
        ensure!(
            found.files.len() > before,
            "corpus {} has no .json, .jsonl or .txt file; folders in it are read if their names say train, valid or test",
            path.display()
        );
    }
    Ok(found)
}

fn add_folder(folder: &Path, name: &Path, enter: fn(&Path) -> bool, found: &mut Found) -> anyhow::Result<()> {
    let in_folder = || format!("corpus {}", folder.display());
    let entries: Vec<std::fs::DirEntry> = folder.read_dir().and_then(Iterator::collect).with_context(in_folder)?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = name.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            if enter(&path) {
                add_folder(&path, &name, enter, found)?;
            } else {
                found.skipped.push(path);
            }
        } else if is_named_as_stories(&path) {
            found.files.push(Named { piece: whole(path)?, name });
        }
    }
    Ok(())
}

fn whole(path: PathBuf) -> anyhow::Result<Piece> {
    let metadata = path.metadata().with_context(|| format!("corpus {}", path.display()))?;
    ensure!(metadata.is_file(), "corpus {} is not a regular file", path.display());
    let since_1970 = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = since_1970.map(|time| time.as_nanos() as u64);
    Ok(Piece { path, start: 0, end: metadata.len(), modified })
}

impl Piece {
    /// Whether the piece is plain text, which can be cut anywhere; JSON cannot.
    pub fn is_text(&self) -> bool {
        !matches!(&extension(&self.path)[..], "json" | "jsonl" | "ndjson")
    }

    /// Whether the file has changed since the piece was planned.
    ///
    /// # Errors
    /// The file is not there any more.
    pub fn has_changed(&self) -> anyhow::Result<bool> {
        let now = whole(self.path.clone())?;
        Ok(self.end > now.end || !same_time(self.modified, now.modified))
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Hands every story to `each`; `progress` advances by the bytes read.
    ///
    /// # Errors
    /// Any error of `each`, and a file that cannot be read or is not valid JSON or UTF-8: the
    /// message names the file and the place.
    pub fn read(&self, separator: &Separator, progress: &ProgressBar, each: Each<'_>) -> anyhow::Result<Counts> {
        let mut stories = Stories { each, counts: Counts::default(), failed: None };
        let file = File::open(&self.path).with_context(|| format!("corpus {}", self.path.display()))?;
        let result = if self.is_text() {
            self.read_text(file, separator, progress, &mut stories)
        } else {
            let file = BufReader::with_capacity(BLOCK, progress.wrap_read(file));
            json::read(file, &mut |story| match story {
                Some(story) => stories.give(story),
                None => {
                    stories.counts.null += 1;
                    Ok(())
                }
            })
        };
        match stories.failed {
            Some(e) => Err(e),
            None => result.with_context(|| format!("corpus {}", self.path.display())).map(|()| stories.counts),
        }
    }

    /// Reads the stories of a plain text. A story begins at the start of the file or where a
    /// separator ends, and lasts up to the next separator. It belongs to the piece in which it
    /// begins: pieces that share no byte share no story.
    fn read_text(
        &self,
        mut file: File,
        separator: &Separator,
        progress: &ProgressBar,
        stories: &mut Stories<'_>,
    ) -> anyhow::Result<()> {
        let most = separator.most_bytes();
        let mut offset = self.start.saturating_sub(most as u64); // of text[0] in the file
        file.seek(SeekFrom::Start(offset))?;
        // text[..head] is the separator before the story.
        let (mut text, mut head, mut searched) = (Vec::new(), 0, 0);
        let mut inside = self.start == 0;
        let mut at_end = false;
        loop {
            // A carriage return at the end of a block may have its line feed in the next one.
            let whole = text.len() - usize::from(!at_end && text.ends_with(b"\r"));
            let mut begin = 0;
            while let Some(found) = separator.find(&text[..whole], begin + searched) {
                if inside {
                    let story = (begin + head).min(found.start)..found.start;
                    stories.give_bytes(&text[story], offset + (begin + head) as u64)?;
                }
                inside |= offset + found.end as u64 >= self.start;
                (begin, head, searched) = (found.start, found.len(), 1);
                if offset + found.end as u64 >= self.end {
                    return Ok(());
                }
            }
            if at_end {
                // The rest behind the last separator is a story only if it is not empty.
                let rest = if inside { &text[begin + head..] } else { &[] };
                return if rest.trim_ascii().is_empty() {
                    Ok(())
                } else {
                    stories.give_bytes(rest, offset + (begin + head) as u64)
                };
            }
            searched = (whole - begin).saturating_sub(most - 1).max(searched);
            text.drain(..begin);
            offset += begin as u64;
            if text.len() > MAX_STORY {
                bail!(
                    "no separator \"{separator}\" within {MAX_STORY} bytes from byte {offset} on: give what separates the \
                     stories with --separator, such as '\\n\\n' for blank lines"
                );
            }
            let read = file.by_ref().take(BLOCK as u64).read_to_end(&mut text)?;
            progress.inc(read as u64);
            at_end = read == 0;
        }
    }
}

/// Whether a file in a folder is taken for stories, by its name.
pub fn is_named_as_stories(path: &Path) -> bool {
    matches!(&extension(path)[..], "json" | "jsonl" | "ndjson" | "txt")
}

/// The extension of a file in lower case: Windows does not distinguish the cases.
fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Counts stories and hands them over.
struct Stories<'a> {
    each: Each<'a>,
    counts: Counts,
    /// The error of `each`, kept here because serde's errors cannot carry it.
    failed: Option<anyhow::Error>,
}

impl Stories<'_> {
    fn give_bytes(&mut self, story: &[u8], offset: u64) -> anyhow::Result<()> {
        let story = std::str::from_utf8(story)
            .map_err(|e| anyhow!("not valid UTF-8 at byte {}: convert it to UTF-8", offset + e.valid_up_to() as u64))?;
        Ok(self.give(story)?)
    }

    fn give(&mut self, story: &str) -> Result<(), io::Error> {
        let story = line_ends(story);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever a text is cut, its pieces together have every story once, also when separators
    /// overlap.
    #[test]
    fn pieces_share_no_story_and_lose_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        for (text, separator) in [
            ("one--two---é----four--", "--"),
            ("one|two||three", "|"),
            ("--", "--"),
            ("one", "--"),
            ("one\r\n\r\ntwo\r\n\r\n\r\nthree\n\r\nfour\r\rfive\n\n", "\\n\\n"),
            ("one\r\n--\r\ntwo", "\\r\\n--\\r\\n"),
        ] {
            let separator: Separator = separator.parse().unwrap();
            std::fs::write(&path, text).unwrap();
            let read = |start: usize, end: usize| {
                let mut stories = Vec::new();
                let piece = Piece { path: path.clone(), start: start as u64, end: end as u64, modified: None };
                piece.read(&separator, &ProgressBar::hidden(), &mut |story| {
                    stories.push(story.to_string());
                    Ok(())
                })?;
                anyhow::Ok(stories)
            };
            let whole = read(0, text.len()).unwrap();
            let expected: Vec<&str> = text.split(['-', '|', '\r', '\n']).filter(|story| !story.is_empty()).collect();
            assert_eq!(whole, expected);
            for cut in 1..text.len() {
                let parts = [read(0, cut).unwrap(), read(cut, text.len()).unwrap()].concat();
                assert_eq!(parts, whole, "{text:?} cut at {cut}");
            }
        }
    }

    /// A block may end anywhere, also between the two bytes of a line end.
    #[test]
    fn blocks_do_not_cut_separators() {
        let folder = tempfile::tempdir().unwrap();
        let piece = |text: &str| {
            let path = folder.path().join("text.txt");
            std::fs::write(&path, text).unwrap();
            whole(path).unwrap()
        };
        let separator = "\\n\\n".parse().unwrap();
        for before in BLOCK - 6..BLOCK + 2 {
            let text = format!("{}\r\n\r\ntwo\r\nlines\r\n\r\nthree", "a".repeat(before));
            let mut stories = Vec::new();
            let read = piece(&text).read(&separator, &ProgressBar::hidden(), &mut |story| {
                stories.push(story.to_string());
                Ok(())
            });
            assert_eq!((read.unwrap().stories, stories[0].len()), (3, before));
            assert_eq!(stories[1..], ["two\nlines", "three"]);
        }
    }
}
