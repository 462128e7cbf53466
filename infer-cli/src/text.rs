//! Writes a stream of token bytes as text.

use std::io::{self, Write};

use infer_core::TextStream;

/// Shows whole characters as soon as they are complete.
pub struct TextOut<W: Write> {
    out: W,
    stream: TextStream,
}

impl<W: Write> TextOut<W> {
    pub fn new(out: W) -> TextOut<W> {
        TextOut { out, stream: TextStream::new() }
    }

    /// Adds the bytes of one token and shows what is complete.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = self.stream.push(bytes);
        self.say(&text)
    }

    /// Writes text of the program itself.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Ends the line. The rest of an incomplete character is shown as U+FFFD.
    pub fn finish(&mut self) -> io::Result<()> {
        let rest = self.stream.finish();
        self.say(&format!("{rest}\n"))
    }
}
