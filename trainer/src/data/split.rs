//! Decides which stories are for training and which for validation: by the names of the files, else
//! by holding out a share of the stories.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::corpus::{self, Counts, Each, Piece};
use crate::data::separator::Separator;
use crate::report::output::note;

/// One story in this many is held out, where neither --valid nor the names of files choose.
const VALIDATION_SHARE: u64 = 20;
/// With fewer stories than this, one in twenty would be a handful or none. Then the last tenth of
/// the text is held out.
const FEW_STORIES: u64 = 200;

/// The stories of a piece that go into a shard.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Every story.
    All,
    /// One story in twenty, chosen by the hash of its text: all copies of a story stay together.
    Validation,
    /// The stories that `Validation` leaves.
    Training,
    /// The last tenth of the text. It may begin inside of a story.
    LastTenth,
    /// The text that `LastTenth` leaves.
    FirstNineTenths,
}

/// The plan of one shard.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Part {
    /// The pieces of the corpus that it is made from, in this order.
    pub pieces: Vec<Piece>,
    /// The choice of stories in the pieces.
    pub stories: Selection,
}

/// The files of a corpus, by their purpose.
#[derive(Default)]
pub struct Files {
    /// Files to train on.
    pub train: Vec<Piece>,
    valid: Vec<Piece>,
    test: Vec<Piece>,
    /// Folders inside the corpus that are not read.
    skipped: Vec<PathBuf>,
}

/// The purpose of a file, by its name.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Train,
    Valid,
    Test,
}

/// The role that a file's or folder's name states in one of its words, as `train.json`,
/// `stories-valid_2.txt` and `Test` do.
fn role(name: &Path) -> Option<Role> {
    let name = name.file_name()?.to_string_lossy().to_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_alphabetic()).collect();
    let says = |names: &[&str]| words.iter().any(|word| names.contains(word));
    let roles = [
        (Role::Train, &["train", "training"][..]),
        (Role::Valid, &["val", "valid", "validation"]),
        (Role::Test, &["test"]),
    ];
    roles.into_iter().find(|(_, names)| says(names)).map(|(role, _)| role)
}

impl Files {
    /// Finds the files of a corpus. A file's own name takes precedence over that of its folder;
    /// folders above the given paths do not count. `valid` names the files to validate on, unless
    /// it is empty.
    ///
    /// # Errors
    /// As [`corpus::files`], and if the names leave nothing to train on.
    pub fn find(paths: &[PathBuf], valid: &[PathBuf]) -> anyhow::Result<Files> {
        let found = corpus::files(paths, |folder| role(folder).is_some())?;
        let mut files = Files { skipped: found.skipped, ..Files::default() };
        for file in found.files {
            match file.name.ancestors().find_map(role) {
                None | Some(Role::Train) => files.train.push(file.piece),
                Some(Role::Valid) => files.valid.push(file.piece),
                Some(Role::Test) => files.test.push(file.piece),
            }
        }
        if files.train.is_empty() {
            ensure!(
                files.valid.is_empty() || files.test.is_empty(),
                "corpus {}: by their names all files are for validation or for tests: name the file to train on itself",
                corpus::list(paths)
            );
            // If all files have the same role, names do not matter: a corpus may be one test.txt.
            files.train.append(&mut files.valid);
            files.train.append(&mut files.test);
        }
        if !valid.is_empty() {
            let given: Vec<Piece> = corpus::files(valid, |_| false)?.files.into_iter().map(|file| file.piece).collect();
            let others = without(&files.train, &given)?;
            if !others.is_empty() {
                files.train = others;
            }
            files.test.extend(without(&files.valid, &given)?);
            files.test = without(&files.test, &given)?;
            files.valid = given;
        }
        Ok(files)
    }
}

/// The plan of all shards of a corpus.
pub struct Plan {
    /// The plans of the shards. The first one is the validation split.
    pub shards: Vec<Part>,
    /// A sentence on how the corpus was split, for the person at the screen.
    pub chosen: String,
}

/// Splits a corpus into shards of at most `most` bytes of text. `valid` names stories to validate
/// on; it may be empty.
///
/// # Errors
/// The corpus cannot be read, has no story, or has one story again and again.
pub fn plan(corpus: &[PathBuf], valid: &[PathBuf], separator: &Separator, most: u64) -> anyhow::Result<Plan> {
    let mut files = Files::find(corpus, valid)?;
    let mut stories = Selection::All;
    let all = |pieces| Part { pieces, stories: Selection::All };
    if !files.valid.is_empty() && without(&files.train, &files.valid)?.is_empty() {
        note("warning: the run validates on the text that it trains on");
    }
    let (valid, how) = if !files.valid.is_empty() {
        let by_name = if valid.is_empty() { ", by name" } else { "" };
        let how = format!("validation on {}{by_name}", names(&files.valid));
        (Some(all(std::mem::take(&mut files.valid))), how)
    } else if files.train.len() > 1 && !files.train.iter().any(Piece::is_text) {
        let first = files.train.remove(0);
        let how = format!("validation on {}, the first JSON file by name", names(std::slice::from_ref(&first)));
        (Some(all(vec![first])), how)
    } else {
        (None, String::new())
    };
    let scouted = scout(&files.train, separator)?;
    let (trained_on, n_files) = (names(&files.train), files.train.len());
    let pieces: Vec<Piece> = files.train.into_iter().flat_map(|piece| divide(piece, most)).collect();
    let (valid, how) = match valid {
        Some(valid) => (valid, how),
        None if scouted < FEW_STORIES => {
            stories = Selection::FirstNineTenths;
            let how = format!(
                "validation on the last tenth of {}, since there are too few stories to hold some out ({scouted})",
                match pieces.len() {
                    1 => "the text",
                    n if n == n_files => "each file",
                    _ => "each part of the text",
                }
            );
            (Part { pieces: pieces.clone(), stories: Selection::LastTenth }, how)
        }
        None => {
            stories = Selection::Training;
            let how = format!("validation on one story in {VALIDATION_SHARE}, by the hash of its text");
            (Part { pieces: pieces.clone(), stories: Selection::Validation }, how)
        }
    };
    let mut unused = if files.test.is_empty() { String::new() } else { format!("; not used: {}", names(&files.test)) };
    if !files.skipped.is_empty() {
        unused += &format!("; folders that are not read: {}", corpus::list(&files.skipped));
    }
    let mut shards = vec![valid];
    shards.extend(group(pieces, most).into_iter().map(|pieces| Part { pieces, stories }));
    Ok(Plan { shards, chosen: format!("training on {trained_on}, {how}{unused}") })
}

/// The pieces whose files are not among those of `left_out`.
fn without(pieces: &[Piece], left_out: &[Piece]) -> anyhow::Result<Vec<Piece>> {
    let place = |piece: &Piece| piece.path.canonicalize().with_context(|| format!("corpus {}", piece.path.display()));
    let left_out = left_out.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
    let mut others = Vec::new();
    for piece in pieces {
        if !left_out.contains(&place(piece)?) {
            others.push(piece.clone());
        }
    }
    Ok(others)
}

/// Names up to three files; of more, the first and their number.
fn names(pieces: &[Piece]) -> String {
    match pieces.len() {
        0..=3 => corpus::list(&pieces.iter().map(|piece| piece.path.clone()).collect::<Vec<_>>()),
        n => format!("{n} files from {} on", pieces[0].path.display()),
    }
}

/// Counts stories, up to [`FEW_STORIES`].
///
/// # Errors
/// There is no story, or all are copies of one: then the wrong field was read as the story.
fn scout(pieces: &[Piece], separator: &Separator) -> anyhow::Result<u64> {
    let (mut first, mut n, mut copies) = (String::new(), 0, 0);
    let mut read = Counts::default();
    for piece in pieces {
        let result = piece.read(separator, &ProgressBar::hidden(), &mut |story| {
            if n == 0 {
                first = story.into();
            }
            n += 1;
            copies += u64::from(story == first);
            ensure!(n < FEW_STORIES, "enough");
            Ok(())
        });
        if n == FEW_STORIES {
            break;
        }
        read += result?;
    }
    ensure!(n > 0, "there are no stories to train on in {}: {read}", names(pieces));
    if n > 1 && copies == n {
        let start: String = first.chars().take(40).collect();
        bail!(
            "all {}{n} stories in {} are the same text, {start:?}: stories of a JSON file are the values of `story` (or \
             `text`)",
            if n == FEW_STORIES { "first " } else { "" },
            names(pieces)
        );
    }
    Ok(n)
}

/// Groups pieces up to `most` bytes each. A group has at least one piece.
fn group(pieces: Vec<Piece>, most: u64) -> Vec<Vec<Piece>> {
    let mut groups: Vec<Vec<Piece>> = Vec::new();
    let mut bytes = 0;
    for piece in pieces {
        bytes += piece.bytes();
        match groups.last_mut() {
            Some(group) if bytes <= most => group.push(piece),
            _ => {
                bytes = piece.bytes();
                groups.push(vec![piece]);
            }
        }
    }
    groups
}

/// Divides a plain text into equal pieces of at most `most` bytes. A JSON file stays whole.
fn divide(piece: Piece, most: u64) -> Vec<Piece> {
    let n = if piece.is_text() { piece.bytes().div_ceil(most).max(1) } else { 1 };
    let at = |i| piece.start + (u128::from(piece.bytes()) * u128::from(i) / u128::from(n)) as u64;
    (0..n).map(|i| Piece { start: at(i), end: at(i + 1), ..piece.clone() }).collect()
}

impl Selection {
    /// Hands over the selected stories of a piece. Where both splits read a piece, its skipped
    /// stories count for the training split alone.
    ///
    /// # Errors
    /// As [`Piece::read`].
    pub fn read(
        self,
        piece: &Piece,
        separator: &Separator,
        progress: &ProgressBar,
        each: Each<'_>,
    ) -> anyhow::Result<Counts> {
        let (mut selected, mut continued) = (0, 0);
        let mut each = |story: &str| {
            selected += 1;
            each(story)
        };
        let read = match self {
            Selection::All => piece.read(separator, progress, &mut each)?,
            Selection::Validation | Selection::Training => piece.read(separator, progress, &mut |story| {
                if is_held_out(story) == (self == Selection::Validation) { each(story) } else { Ok(()) }
            })?,
            Selection::LastTenth | Selection::FirstNineTenths => {
                let mut bytes = 0;
                piece.read(separator, &ProgressBar::hidden(), &mut |story| {
                    bytes += story.len();
                    Ok(())
                })?;
                let mut left = bytes - bytes / 10;
                piece.read(separator, progress, &mut |story| {
                    let (first, last) = cut(story, left);
                    left = left.saturating_sub(story.len());
                    // The story that is cut counts for the training split alone.
                    continued += u64::from(self == Selection::LastTenth && !first.is_empty() && !last.is_empty());
                    let part = if self == Selection::LastTenth { last } else { first };
                    if part.is_empty() { Ok(()) } else { each(part) }
                })?
            }
        };
        let skips = !matches!(self, Selection::Validation | Selection::LastTenth);
        Ok(Counts { stories: selected - continued, ..if skips { read } else { Counts::default() } })
    }
}

/// Whether `Selection::Validation` selects the story.
fn is_held_out(story: &str) -> bool {
    let hash: [u8; 32] = Sha256::digest(story).into();
    u64::from_le_bytes(std::array::from_fn(|i| hash[i])).is_multiple_of(VALIDATION_SHARE)
}

/// Cuts a story behind its first `n` bytes, at the end of the word there.
fn cut(story: &str, n: usize) -> (&str, &str) {
    if n == 0 || n >= story.len() {
        return if n == 0 { ("", story) } else { (story, "") };
    }
    let n = (n..).find(|&at| story.is_char_boundary(at)).unwrap_or(n);
    let end = story[n..].find(char::is_whitespace).map_or(n, |space| n + space);
    (story[..end].trim_end(), story[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is_for() {
        for (name, train, valid, test) in [
            ("train.json", true, false, false),
            ("TinyStoriesV2-GPT4-valid.txt", false, true, false),
            ("val_01.jsonl", false, true, false),
            ("My Validation set.txt", false, true, false),
            ("TEST.txt", false, false, true),
            ("train-00000-of-00004.json", true, false, false),
            ("contest.txt", false, false, false),
            ("values.json", false, false, false),
            ("trainer.txt", false, false, false),
        ] {
            let role = role(Path::new(name));
            let found = [Role::Train, Role::Valid, Role::Test].map(|wanted| role == Some(wanted));
            assert_eq!(found, [train, valid, test], "{name}");
        }
    }

    #[test]
    fn a_story_is_cut_between_words() {
        assert_eq!(cut("one two three", 5), ("one two", "three"));
        assert_eq!(cut("one two", 0), ("", "one two"));
        assert_eq!(cut("one two", 7), ("one two", ""));
        assert_eq!(cut("éé", 1), ("é", "é"));
    }
}
