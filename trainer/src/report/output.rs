//! What the program prints, and how it says what went wrong.

use std::fmt;
use std::io::{self, Write};

/// A mistake on the command line, as opposed to one in a file: exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The reader of standard output has gone, as with `trainer sample out | head -1`.
#[derive(Debug)]
pub struct Unread;

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for Unread {}

/// Prints a result.
///
/// # Errors
/// [`Unread`]: what is left to print needs no computing.
pub fn say(line: &str) -> anyhow::Result<()> {
    print(format!("{line}\n").as_bytes())
}

/// Prints bytes as they are.
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    io::stdout().write_all(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Unread.into(),
        _ => e.into(),
    })
}

/// An error and its causes on one line, whatever they say.
pub fn one_line(e: &anyhow::Error) -> String {
    format!("{e:#}").lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
