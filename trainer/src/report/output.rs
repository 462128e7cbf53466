//! Speaks to the person: results, news, notes and errors.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::process::ExitCode;

/// A mistake on the command line, as opposed to one in a file: exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The reader of standard output has gone, as with `trainer sample out | head -1`.
#[derive(Debug)]
pub struct Unread;

impl Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for Unread {}

/// Prints a line of the result that a command was called for.
///
/// # Errors
/// [`Unread`]: nobody reads the rest of the result, so it need not be computed.
pub fn result(line: impl Display) -> anyhow::Result<()> {
    print(format!("{line}\n").as_bytes())
}

/// Prints the bytes of a result as they are.
///
/// # Errors
/// As [`result`].
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    io::stdout().write_all(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Unread.into(),
        _ => e.into(),
    })
}

/// Prints a line of news on standard output. The work goes on when nobody reads it.
pub fn say(line: impl Display) {
    _ = writeln!(io::stdout(), "{line}");
}

/// Prints a line on standard error. The work goes on when nobody reads it.
pub fn note(line: impl Display) {
    _ = writeln!(io::stderr(), "{line}");
}

/// Reports the error of a command, and returns the program's exit status.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is::<Unread>() => ExitCode::SUCCESS,
        Err(e) => {
            note(format_args!("error: {}", one_line(&e)));
            ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// An error and its causes on one line, even if a message has line breaks.
fn one_line(e: &anyhow::Error) -> String {
    format!("{e:#}").lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
