//! Chat for programs: one JSON object per line, in and out.
//!
//! ```text
//! in   {"content": "Hello"}
//! out  {"delta": "Hi"}
//! out  {"delta": " there"}
//! out  {"role": "assistant", "content": "Hi there", "finish_reason": "stop", …}
//! ```

use std::io::{self, Write};

use infer_core::TextStream;
use serde::{Deserialize, Serialize};

use super::input::{Asked, normalize, read_line};
use super::interrupt;
use super::keep::Keeper;
use super::talker::{Finish, Talker};
use crate::args::GenerateArgs;
use crate::session::Usage;

/// A line of input: a message, or a command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// "user", which is the default, or "system".
    role: Option<String>,
    content: Option<String>,
    /// "reset" forgets the conversation, but not the system prompt.
    command: Option<String>,
}

/// A line of output.
#[derive(Serialize)]
#[serde(untagged)]
enum Out<'a> {
    /// A piece of the answer that is being written.
    Delta { delta: &'a str },
    /// The whole answer.
    Answer {
        role: &'static str,
        content: &'a str,
        finish_reason: &'static str,
        /// Tokens that were read for it; the KV cache held the others.
        prompt_tokens: usize,
        /// Tokens of the answer, with the one that ended it.
        tokens: usize,
        tokens_per_second: Option<f64>,
        prompt_tokens_per_second: Option<f64>,
        /// Old turns that the model does not read any more.
        dropped_turns: usize,
    },
    /// A system prompt or command has been taken.
    Done { ok: bool },
    /// A line that has no effect.
    Error { error: &'a str },
}

/// Answers lines until they end.
pub fn run(talker: Talker<'_>, keeper: Option<&Keeper>, args: &GenerateArgs, resumed: bool) -> anyhow::Result<()> {
    let mut chat = Lines { talker, keeper, refused: 0 };
    if !resumed || args.system_prompt.is_some() {
        chat.talker.start(&normalize(args.system_prompt.as_deref().unwrap_or("")))?;
    }
    if let Some(first) = &args.prompt {
        chat.say(normalize(first))?;
    }
    loop {
        match read_line()? {
            Asked::Text(line) if line.trim().is_empty() => {}
            Asked::Text(line) => match serde_json::from_str(&line) {
                Ok(line) => chat.take(line)?,
                Err(e) => chat.refuse(&format!("the line is not a JSON object of a message: {e}"))?,
            },
            Asked::Unusable(why) => chat.refuse(&why)?,
            Asked::End if chat.refused > 0 => return Err(Usage(format!("lines refused: {}", chat.refused)).into()),
            Asked::End => return Ok(()),
        }
    }
}

struct Lines<'a> {
    talker: Talker<'a>,
    keeper: Option<&'a Keeper>,
    refused: usize,
}

impl Lines<'_> {
    fn take(&mut self, line: Line) -> anyhow::Result<()> {
        match (line.role.as_deref().unwrap_or("user"), line.content, line.command.as_deref()) {
            ("user", Some(text), None) => self.say(text),
            ("system", Some(text), None) => match self.talker.turns.set_system(&text) {
                Ok(Ok(())) => self.done(),
                Ok(Err(n)) => self.refuse(&self.talker.no_room_beside(&text, n)),
                Err(e) => self.refuse(&format!("{e:#}")),
            },
            (_, None, Some("reset")) if line.role.is_none() => {
                self.talker.turns.reset();
                self.done()
            }
            _ => self.refuse(
                "a line is {\"content\": TEXT}, {\"role\": \"user\" or \"system\", \"content\": TEXT} or \
                 {\"command\": \"reset\"}",
            ),
        }
    }

    fn done(&mut self) -> anyhow::Result<()> {
        self.keep()?;
        put(&Out::Done { ok: true })
    }

    fn refuse(&mut self, problem: &str) -> anyhow::Result<()> {
        self.refused += 1;
        put(&Out::Error { error: problem })
    }

    fn say(&mut self, text: String) -> anyhow::Result<()> {
        match self.talker.too_long(&text) {
            Ok(None) => {}
            Ok(Some(problem)) => return self.refuse(&problem),
            Err(e) => return self.refuse(&format!("{e:#}")),
        }
        let before = self.talker.begin(text)?;
        let (mut stream, mut content) = (TextStream::new(), String::new());
        interrupt::stops_answers(true);
        let answer = self.talker.answer(|bytes| {
            let text = stream.push(bytes);
            // The space between a message and its answer belongs to neither.
            let text = if content.is_empty() { text.trim_start() } else { &text };
            content.push_str(text);
            if text.is_empty() { Ok(()) } else { put(&Out::Delta { delta: text }) }
        });
        interrupt::stops_answers(false);
        let answer = answer?;
        content.push_str(stream.finish());
        let rates = answer.rate.per_second();
        put(&Out::Answer {
            role: "assistant",
            content: &content,
            finish_reason: match answer.finish {
                Finish::Stop => "stop",
                Finish::Length => "length",
                Finish::Interrupted => "interrupted",
            },
            prompt_tokens: answer.rate.prompt,
            tokens: answer.rate.tokens(),
            tokens_per_second: rates.map(|(rate, _)| rate),
            prompt_tokens_per_second: rates.map(|(_, prompt)| prompt),
            dropped_turns: before + answer.dropped,
        })?;
        self.keep()
    }

    fn keep(&mut self) -> anyhow::Result<()> {
        self.keeper.map_or(Ok(()), |keeper| keeper.store(&mut self.talker))
    }
}

fn put(line: &Out<'_>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    Ok(out.flush()?)
}
