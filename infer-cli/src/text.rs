//! Writes a stream of token bytes as text.

use std::io::{self, Write};

/// Writes whole UTF-8 characters as soon as they are complete. A model must not drive the terminal:
/// control characters other than white space are dropped, and bytes that are no text become U+FFFD.
pub struct TextOut<W: Write> {
    out: W,
    pending: Vec<u8>,
}

impl<W: Write> TextOut<W> {
    pub fn new(out: W) -> TextOut<W> {
        TextOut { out, pending: Vec::new() }
    }

    /// Adds the bytes of one token and shows what is complete.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut keep = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.extend(chunk.valid().chars().filter(|c| is_printable(*c)));
            if chunks.peek().is_none() && is_incomplete(chunk.invalid()) {
                keep = chunk.invalid().len(); // the next token may complete the character
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - keep);
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Writes text of the program itself.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Ends the line, after whatever is left of an incomplete character.
    pub fn finish(&mut self) -> io::Result<()> {
        let rest = if self.pending.is_empty() { "\n" } else { "\u{fffd}\n" };
        self.pending.clear();
        self.say(rest)
    }
}

fn is_printable(c: char) -> bool {
    !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// Whether more bytes could make this the start of a character. `utf8_chunks` reports the longest
/// prefix of a character that is valid so far, or a single wrong byte.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown after each of the tokens, and at the end.
    fn shown(tokens: &[&[u8]]) -> Vec<String> {
        let mut buffer = Vec::new();
        let mut shown = Vec::new();
        let mut out = TextOut::new(&mut buffer);
        for token in tokens {
            out.push(token).unwrap();
            shown.push(String::from_utf8(out.out.split_off(0)).unwrap());
        }
        out.finish().unwrap();
        shown.push(String::from_utf8(out.out.split_off(0)).unwrap());
        shown
    }

    #[test]
    fn characters_appear_when_they_are_whole() {
        assert_eq!(shown(&[b"a\xf0", b"\x9f\x98", b"\x80b"]), ["a", "", "😀b", "\n"]);
        assert_eq!(shown(&[b"\xc3", b"\xa9"]), ["", "é", "\n"]);
    }

    #[test]
    fn broken_characters_are_marked() {
        assert_eq!(shown(&[b"\xf0\x9f", b"a"]), ["", "\u{fffd}a", "\n"]);
        assert_eq!(shown(&[b"\x80", b"\xff\xfe"]), ["\u{fffd}", "\u{fffd}\u{fffd}", "\n"]);
        assert_eq!(shown(&[b"a\xe2\x96"]), ["a", "\u{fffd}\n"]);
    }

    #[test]
    fn a_model_cannot_drive_the_terminal() {
        assert_eq!(shown(&[b"\x1b[2J\x07\x00\x7f", "\u{9b}x".as_bytes(), b"a\tb\r\n"]), ["[2J", "x", "a\tb\r\n", "\n"]);
    }
}
