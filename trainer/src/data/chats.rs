//! Reads chats to learn from: one JSON object per line, `{"messages": [{"role", "content"}, …]}` or
//! `{"prompt", "response"}`. Other fields are ignored.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use infer_text::{Message, Rendered, Template, TextTokenizer};
use rayon::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Most bytes of a chat.
const MAX_LINE: u64 = 16 << 20;
/// One chat in so many is held out for validation.
const VALIDATION_SHARE: u64 = 20;
/// With fewer chats than this, one in twenty would be a handful or none. Then the last tenth of the
/// chats is held out.
const FEW_CHATS: usize = 200;
/// The role whose messages are learned.
const ASSISTANT: &str = "assistant";

/// A conversation, and the line of the file that it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// What is said, in order.
    pub messages: Vec<Message>,
    line: usize,
}

/// A line of the file.
#[derive(Deserialize)]
struct Line {
    messages: Option<Vec<Said>>,
    prompt: Option<String>,
    response: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

/// Chats of one file.
pub struct Chats {
    /// The file.
    pub path: PathBuf,
    /// In the order of the file.
    pub chats: Vec<Chat>,
}

impl Chats {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, has no chats, or a line is no chat: the message names the line.
    pub fn read(path: &Path) -> anyhow::Result<Chats> {
        let name = || format!("chats {}", path.display());
        ensure!(path.metadata().with_context(name)?.is_file(), "{}: not a regular file", name());
        let mut file = BufReader::new(File::open(path).with_context(name)?);
        let mut chats = Vec::new();
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            let in_line = || format!("{}, line {line}", name());
            if file.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut text).with_context(in_line)? == 0 {
                break;
            }
            ensure!(text.len() as u64 <= MAX_LINE, "{}: a chat has at most {} MB", in_line(), MAX_LINE >> 20);
            let json = if line == 1 { text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text) } else { &text };
            if !json.trim_ascii().is_empty() {
                chats.push(Chat { messages: parse(json).with_context(in_line)?, line });
            }
        }
        ensure!(!chats.is_empty(), "{} has no chats: give one JSON object per line", name());
        Ok(Chats { path: path.to_path_buf(), chats })
    }

    /// Splits off the chats to validate on: one in twenty by the hash of its text, so that copies
    /// stay together; of few chats the last tenth. Returns how they were chosen, in words.
    ///
    /// # Errors
    /// There is a single chat.
    pub fn hold_out(&mut self) -> anyhow::Result<(Chats, String)> {
        let n = self.chats.len();
        ensure!(n > 1, "{} has one chat: give others to validate on with --chats-valid", self.path.display());
        let (held_out, how) = if n < FEW_CHATS {
            (self.chats.split_off(n - n.div_ceil(10)), "the last tenth".to_string())
        } else {
            let held_out = self.chats.extract_if(.., |chat| chat.is_held_out()).collect();
            (held_out, format!("one in {VALIDATION_SHARE}, by the hash of its text"))
        };
        ensure!(
            !self.chats.is_empty() && !held_out.is_empty(),
            "the chats in {} are too much alike to hold some out: give others to validate on with --chats-valid",
            self.path.display()
        );
        Ok((Chats { path: self.path.clone(), chats: held_out }, how))
    }

    /// Writes down all chats as the model reads them.
    ///
    /// # Errors
    /// The template refuses a chat: the message names its line.
    pub fn render(&self, template: &Template, tokenizer: &TextTokenizer) -> anyhow::Result<Vec<Rendered>> {
        let render = |chat: &Chat| {
            let rendered = template.render(tokenizer, &chat.messages, false);
            rendered.with_context(|| format!("chats {}, line {}", self.path.display(), chat.line))
        };
        self.chats.par_iter().map(render).collect()
    }

    /// All that is said, for a vocabulary to be learned from.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.chats.iter().flat_map(|chat| chat.messages.iter().map(|message| message.content.as_str()))
    }
}

impl Chat {
    fn is_held_out(&self) -> bool {
        let mut hash = Sha256::new();
        for text in self.messages.iter().flat_map(|message| [&message.role, &message.content]) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        let hash: [u8; 32] = hash.finalize().into();
        u64::from_le_bytes(std::array::from_fn(|i| hash[i])).is_multiple_of(VALIDATION_SHARE)
    }
}

fn parse(json: &[u8]) -> anyhow::Result<Vec<Message>> {
    const FORMS: &str = "give {\"messages\": [{\"role\": …, \"content\": …}, …]} or {\"prompt\": …, \"response\": …}";
    // The text is one line: its number is that of the file.
    let line: Line = serde_json::from_slice(json)
        .map_err(|e| anyhow!("{}: {FORMS}", e.to_string().replace(" at line 1 column ", " at column ")))?;
    let said = |role: &str, content| Said { role: role.into(), content };
    let messages = match line {
        Line { messages: Some(messages), prompt: None, response: None } => messages,
        Line { messages: None, prompt: Some(prompt), response: Some(response) } => {
            vec![said("user", prompt), said(ASSISTANT, response)]
        }
        Line { messages: None, prompt: None, response: None } => bail!("no field `messages`, and no `prompt`: {FORMS}"),
        Line { messages: Some(_), .. } => bail!("`messages` beside `prompt` or `response`: {FORMS}"),
        _ => bail!("`prompt` without `response`, or the other way round: {FORMS}"),
    };
    ensure!(
        messages.iter().any(|said| said.role == ASSISTANT),
        "no message has the role \"{ASSISTANT}\": there is nothing to learn"
    );
    Ok(messages.into_iter().map(|said| Message::new(&said.role, said.content)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Chats> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("chats.jsonl");
        std::fs::write(&path, text)?;
        Chats::read(&path)
    }

    #[test]
    fn both_forms_are_read() {
        let chats = read(
            "\u{feff}{\"prompt\": \"1?\", \"response\": \"one\", \"id\": 7}\r\n\n\
             {\"messages\": [{\"role\": \"user\", \"content\": \"1?\"}, {\"role\": \"assistant\", \"content\": \"one\"}]}",
        );
        let chats = chats.unwrap().chats;
        assert_eq!((chats.len(), chats[0].line, chats[1].line), (2, 1, 3));
        assert_eq!(chats[0].messages, [Message::new("user", "1?"), Message::new("assistant", "one")]);
        assert_eq!(chats[0].messages, chats[1].messages);
    }

    #[test]
    fn what_is_no_chat_is_refused_with_its_line() {
        let deep = "[".repeat(100_000);
        for (line, part) in [
            ("{\"prompt\": \"1?\"}", "`prompt` without `response`"),
            ("{\"text\": \"1?\"}", "no field `messages`, and no `prompt`"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"1?\"}]}", "no message has the role \"assistant\""),
            ("{\"messages\": [{\"role\": \"user\"}]}", "missing field `content` at column 30"),
            ("{\"messages\": [], \"prompt\": \"1?\"}", "`messages` beside `prompt`"),
            ("{\"prompt\": 1, \"response\": \"one\"}", "invalid type: integer `1`, expected a string at column 12"),
            ("{\"prompt\": \"\\ud83d\", \"response\": \"one\"}", "at column"),
            ("1?", "at column"),
            (&deep, "invalid type: sequence"),
        ] {
            let error = format!("{:#}", read(&format!("\n{line}\n")).err().unwrap());
            assert!(error.contains("chats.jsonl, line 2: ") && error.contains(part), "{line:.60}: {error}");
        }
        assert!(format!("{:#}", read("\n\n").err().unwrap()).contains("has no chats"));
    }

    #[test]
    fn copies_of_a_chat_are_on_one_side() {
        let numbers = (0..300).chain(0..300);
        let text: String = numbers.map(|n| format!("{{\"prompt\": \"{n}?\", \"response\": \"{n}\"}}\n")).collect();
        let mut train = read(&text).unwrap();
        let (valid, how) = train.hold_out().unwrap();
        assert!((10..60).contains(&valid.chats.len()), "{how}: {}", valid.chats.len());
        assert_eq!(train.chats.len() + valid.chats.len(), 600);
        let same = |a: &Chat, b: &Chat| a.messages == b.messages;
        assert!(valid.chats.iter().all(|a| !train.chats.iter().any(|b| same(a, b))));

        let mut few = read(&text[..text.match_indices('\n').nth(11).unwrap().0]).unwrap();
        let (valid, how) = few.hold_out().unwrap();
        assert_eq!((few.chats.len(), valid.chats.len(), &how[..]), (10, 2, "the last tenth"));
    }
}
