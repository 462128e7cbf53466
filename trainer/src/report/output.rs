//! Speaks to the person: results, news, notes and errors.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set where another process of the same job speaks.
static MUTED: AtomicBool = AtomicBool::new(false);

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

/// The person knows already why the program ends, which it does with this exit status.
#[derive(Debug)]
pub struct Told(pub u8);

impl Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl std::error::Error for Told {}

/// Lets this process print no news and no notes from now on.
pub fn mute() {
    MUTED.store(true, Ordering::Relaxed);
}

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
    if !MUTED.load(Ordering::Relaxed) {
        _ = writeln!(io::stdout(), "{line}");
    }
}

/// Prints a line on standard error. The work goes on when nobody reads it.
pub fn note(line: impl Display) {
    if !MUTED.load(Ordering::Relaxed) {
        _ = writeln!(io::stderr(), "{line}");
    }
}

/// Prints an error, also where nothing else is printed.
pub fn error_line(error: impl Display) {
    // In one piece: the processes of a job write to the same place.
    _ = io::stderr().write_all(format!("error: {error}\n").as_bytes());
}

/// Reports the error of a command, and returns the program's exit status.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is::<Unread>() && !e.is::<Told>() {
                error_line(one_line(&e));
            }
            ExitCode::from(status_of(&e))
        }
    }
}

/// The exit status of a program that ends with this error.
pub fn status_of(e: &anyhow::Error) -> u8 {
    match e.downcast_ref() {
        Some(Told(status)) => *status,
        None if e.is::<Unread>() => 0,
        None if e.is::<Usage>() => 2,
        None => 1,
    }
}

/// An error and its causes on one line, even if a message has line breaks.
pub fn one_line(e: &anyhow::Error) -> String {
    format!("{e:#}").lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}
