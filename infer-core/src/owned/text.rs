//! Turns the bytes of tokens into text that can be shown.

use std::string::String;
use std::vec::Vec;

/// Collects bytes to whole UTF-8 characters. A model must not drive the terminal: control
/// characters other than white space are dropped, and bytes that are no text become U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// An empty stream.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// Adds the bytes of one token and returns the text that is complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
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
        text
    }

    /// Ends the stream: U+FFFD if a character is incomplete, else nothing.
    pub fn finish(&mut self) -> &'static str {
        let rest = if self.pending.is_empty() { "" } else { "\u{fffd}" };
        self.pending.clear();
        rest
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

    /// The text after each of the tokens, and at the end.
    fn shown(tokens: &[&[u8]]) -> Vec<String> {
        let mut stream = TextStream::new();
        let mut shown: Vec<String> = tokens.iter().map(|token| stream.push(token)).collect();
        shown.push(stream.finish().into());
        shown
    }

    #[test]
    fn characters_appear_when_they_are_whole() {
        assert_eq!(shown(&[b"a\xf0", b"\x9f\x98", b"\x80b"]), ["a", "", "😀b", ""]);
        assert_eq!(shown(&[b"\xc3", b"\xa9"]), ["", "é", ""]);
    }

    #[test]
    fn broken_characters_are_marked() {
        assert_eq!(shown(&[b"\xf0\x9f", b"a"]), ["", "\u{fffd}a", ""]);
        assert_eq!(shown(&[b"\x80", b"\xff\xfe"]), ["\u{fffd}", "\u{fffd}\u{fffd}", ""]);
        assert_eq!(shown(&[b"a\xe2\x96"]), ["a", "\u{fffd}"]);
    }

    #[test]
    fn a_model_cannot_drive_the_terminal() {
        assert_eq!(shown(&[b"\x1b[2J\x07\x00\x7f", "\u{9b}x".as_bytes(), b"a\tb\r\n"]), ["[2J", "x", "a\tb\r\n", ""]);
    }
}
