//! Reads messages: from a person at a terminal, who edits them, or from the lines of a file.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};

use crate::text::TextOut;

/// Bytes of a line that is read: far more than any context holds, and far less than memory.
const LONGEST: usize = 1 << 24;

/// The source of messages.
pub enum Input {
    /// A terminal with an editor. It reads standard input itself, and holds what was typed ahead.
    Terminal(Box<Editor<(), MemHistory>>),
    /// Lines, as llama2.c reads them.
    Lines,
}

/// The answer to a question.
pub enum Asked {
    Text(String),
    /// The input is not a text, for this reason.
    Unusable(String),
    /// The end of the input.
    End,
}

impl Input {
    /// Takes the terminal, when standard input and output are one that can move its cursor.
    pub fn open() -> anyhow::Result<Input> {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if dumb || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Input::Lines);
        }
        let config = Config::builder().auto_add_history(false).build();
        Ok(Input::Terminal(Box::new(Editor::with_history(config, MemHistory::new())?)))
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// Asks for a text. Line ends become `\n`, whatever they are in the input.
    pub fn ask(&mut self, out: &mut TextOut<impl Write>, question: &str) -> anyhow::Result<Asked> {
        match self {
            Input::Terminal(editor) => edit(editor, question),
            Input::Lines => {
                out.say(question)?;
                read_line()
            }
        }
    }

    /// Lets the arrow keys find this text again.
    pub fn remember(&mut self, text: &str) -> anyhow::Result<()> {
        if let Input::Terminal(editor) = self {
            editor.add_history_entry(text)?;
        }
        Ok(())
    }
}

fn edit(editor: &mut Editor<(), MemHistory>, question: &str) -> anyhow::Result<Asked> {
    loop {
        match editor.readline(question) {
            Ok(text) => return Ok(Asked::Text(normalize(&text).trim_end_matches('\n').into())),
            Err(ReadlineError::Eof) => return Ok(Asked::End),
            Err(ReadlineError::Interrupted) => writeln!(io::stderr(), "(Ctrl-D ends the chat)")?,
            Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                discard_typed();
                return Ok(Asked::Unusable("the input is not valid UTF-8".into()));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads one line of standard input.
pub fn read_line() -> anyhow::Result<Asked> {
    let mut line = Vec::new();
    let mut stdin = io::stdin().lock();
    if stdin.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', &mut line)? == 0 {
        return Ok(Asked::End);
    }
    if line.len() > LONGEST {
        if line.last() != Some(&b'\n') {
            stdin.skip_until(b'\n')?;
        }
        return Ok(Asked::Unusable(format!("the line \"{}\" has more than {LONGEST} bytes", excerpt(&line))));
    }
    Ok(match std::str::from_utf8(&line) {
        Ok(text) => {
            let text = normalize(text);
            Asked::Text(text.strip_suffix('\n').unwrap_or(&text).into())
        }
        Err(_) => Asked::Unusable(format!("the input \"{}\" is not valid UTF-8", excerpt(&line))),
    })
}

/// The text with `\n` for the line ends of Windows and of old Macs.
pub fn normalize(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// The beginning of a line without control characters.
fn excerpt(line: &[u8]) -> String {
    const CHARS: usize = 60;
    let text: String = String::from_utf8_lossy(&line[..line.len().min(8 * CHARS)])
        .chars()
        .filter(|c| !c.is_control())
        .take(CHARS + 1)
        .collect();
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Throws away typed and pasted text: the rest of a text that is refused must not become messages.
fn discard_typed() {
    #[cfg(unix)]
    let _ = nix::sys::termios::tcflush(io::stdin(), nix::sys::termios::FlushArg::TCIFLUSH);
}

/// While this value lives, the terminal keeps typed and pasted text for the next message and does
/// not show it, since an answer is being written.
pub struct Quiet {
    #[cfg(unix)]
    before: Option<nix::sys::termios::Termios>,
}

/// Tells the terminal whether to mark the beginning and the end of a paste. The editor asks for the
/// marks only while it reads.
#[cfg(unix)]
fn mark_pastes(on: bool) {
    let mut out = io::stdout();
    let _ = write!(out, "\x1b[?2004{}", if on { 'h' } else { 'l' });
    let _ = out.flush();
}

#[cfg(unix)]
impl Quiet {
    pub fn new(input: &Input) -> Quiet {
        use nix::sys::termios::{InputFlags, LocalFlags, SetArg, tcgetattr, tcsetattr};
        if !input.is_terminal() {
            return Quiet { before: None };
        }
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            // Without ICANON the terminal keeps all of a long line. Ctrl-C still is a signal.
            quiet.local_flags &= !(LocalFlags::ECHO | LocalFlags::ICANON);
            quiet.input_flags &= !InputFlags::ICRNL;
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &quiet);
            mark_pastes(true);
        }
        Quiet { before }
    }
}

#[cfg(unix)]
impl Drop for Quiet {
    fn drop(&mut self) {
        use nix::sys::termios::{SetArg, tcsetattr};
        if let Some(before) = &self.before {
            mark_pastes(false);
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

#[cfg(not(unix))]
impl Quiet {
    pub fn new(_: &Input) -> Quiet {
        Quiet {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_newlines() {
        assert_eq!(normalize("a\r\nb\rc\n\r\n"), "a\nb\nc\n\n");
    }

    #[test]
    fn excerpts_are_short_and_printable() {
        assert_eq!(excerpt(b"a\x1b[2Jb\xff\n"), "a[2Jb\u{fffd}");
        assert_eq!(excerpt("é".repeat(61).as_bytes()), format!("{}…", "é".repeat(60)));
    }
}
