//! The separator between the stories of a plain text. The line ends `\n`, `\r\n` and `\r` are
//! equivalent.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The default separator.
pub const SEPARATOR: &str = "<|endoftext|>";

/// A text between stories, never empty. A line end in it stands for any kind of line end.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Separator(String);

/// Reads a separator from the command line. `\n`, `\r`, `\t` and `\\` are escapes as in Rust.
impl FromStr for Separator {
    type Err = String;

    fn from_str(text: &str) -> Result<Separator, String> {
        let mut separator = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match (c, chars.as_str().chars().next()) {
                ('\\', Some(escape @ ('n' | 'r' | 't' | '\\'))) => {
                    separator.push(match escape {
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        _ => '\\',
                    });
                    chars.next();
                }
                _ => separator.push(c),
            }
        }
        if separator.is_empty() { Err("is empty".into()) } else { Ok(Separator(line_ends(&separator).into())) }
    }
}

impl TryFrom<String> for Separator {
    type Error = String;

    fn try_from(text: String) -> Result<Separator, String> {
        text.parse()
    }
}

impl From<Separator> for String {
    fn from(separator: Separator) -> String {
        separator.to_string()
    }
}

impl Default for Separator {
    fn default() -> Separator {
        Separator(SEPARATOR.into())
    }
}

/// Prints the separator as the command line takes it.
impl fmt::Display for Separator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t"))
    }
}

impl Separator {
    /// Most bytes that the separator takes in a text.
    pub fn most_bytes(&self) -> usize {
        self.0.len() + self.0.matches('\n').count()
    }

    /// Finds the first separator in the text that begins at `from` or later. It may overlap another
    /// one, as blank lines do, but never begins inside of `\r\n`.
    pub fn find(&self, text: &[u8], from: usize) -> Option<Range<usize>> {
        let first = self.0.as_bytes()[0];
        let mut at = from;
        loop {
            let rest = text.get(at..)?;
            at += if first == b'\n' { memchr::memchr2(b'\n', b'\r', rest)? } else { memchr::memchr(first, rest)? };
            let inside = at > 0 && text[at - 1..].starts_with(b"\r\n");
            if let Some(len) = self.len_at(&text[at..]).filter(|_| !inside) {
                return Some(at..at + len);
            }
            at += 1;
        }
    }

    /// The bytes that a separator takes at the start of a text; `None` if there is none.
    fn len_at(&self, text: &[u8]) -> Option<usize> {
        let mut at = 0;
        for &byte in self.0.as_bytes() {
            let rest = text.get(at..)?;
            at += match (byte, rest.first()?) {
                (b'\n', _) if rest.starts_with(b"\r\n") => 2,
                (b'\n', b'\n' | b'\r') => 1,
                (byte, there) if byte == *there => 1,
                _ => return None,
            };
        }
        Some(at)
    }
}

/// The text with `\n` for every line end.
pub fn line_ends(text: &str) -> Cow<'_, str> {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read_and_written_back() {
        for (given, text) in [
            ("\\n\\n", "\n\n"),
            ("\\r\\n", "\n"),
            ("\\r", "\n"),
            ("a\\tb", "a\tb"),
            ("\\\\n", "\\n"),
            ("\\d\\", "\\d\\"),
            ("\r\n--\r\n", "\n--\n"),
        ] {
            let separator: Separator = given.parse().unwrap();
            assert_eq!(separator.0, text);
            assert_eq!(separator.to_string().parse::<Separator>().unwrap(), separator);
        }
        assert!("".parse::<Separator>().is_err());
    }

    #[test]
    fn a_line_end_is_one_whatever_its_kind() {
        let blank_line: Separator = "\\n\\n".parse().unwrap();
        let find = |text: &str, from| blank_line.find(text.as_bytes(), from);
        assert_eq!(find("a\r\nb\nc\rd", 0), None);
        assert_eq!(find("a\r\n\r\nb", 0), Some(1..5));
        assert_eq!(find("a\n\r\nb", 0), Some(1..4));
        assert_eq!(find("a\r\rb", 0), Some(1..3));
        // Separators may overlap, but none begins in the middle of a line end.
        assert_eq!(find("\r\n\r\n\r\n", 1), Some(2..6));
        assert_eq!(find("\r\n\r\n", 1), None);
        assert_eq!(line_ends("a\r\nb\rc\n\r\n"), "a\nb\nc\n\n");
    }
}
