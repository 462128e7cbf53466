//! Jinja templates as Hugging Face has them, run as transformers runs them.
//!
//! The template sees the messages, and what it writes is searched for special tokens. Those in the
//! messages are broken first, by a character that neither the messages nor the template have, and
//! which is dropped before encoding. Three more such characters mark the answers.

use std::error::Error;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, context};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::script::{Message, Script};
use crate::added::Part;
use crate::tokenizer::TextTokenizer;

/// Bounds time and memory: a unit is one instruction, or 64 bytes of data. A long conversation
/// takes a few thousand.
const FUEL: u64 = 2_000_000;
/// A template takes less than a millisecond.
const MOST_TIME: Duration = Duration::from_secs(5);
/// Bytes that a template may write.
const MOST_WRITTEN: usize = 1 << 26;
const NAME: &str = "chat";
/// Characters that Unicode leaves to programs, and that hardly any uses.
const PRIVATE: RangeInclusive<char> = '\u{f0000}'..='\u{ffffd}';

/// A compiled template.
#[derive(Debug)]
pub struct Jinja {
    environment: Arc<Environment<'static>>,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// Characters that are in no text of a conversation.
#[derive(Clone, Copy)]
struct Marks {
    /// Breaks the names of special tokens.
    broken: char,
    /// An answer: `[number]text.`, with marks for the brackets and the full stop.
    open: char,
    begin: char,
    end: char,
}

impl Jinja {
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> anyhow::Result<Jinja> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| anyhow!("{}", describe(&e)))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| crate::clock::format_now(format));
        environment.add_filter("tojson", to_json);
        let template = without_generation_tags(source);
        environment.add_template_owned(NAME, template).map_err(|e| anyhow!("{}", describe(&e)))?;
        let owned = |token: Option<&str>| token.map(str::to_owned);
        Ok(Jinja {
            environment: Arc::new(environment),
            source: source.into(),
            bos_token: owned(bos_token),
            eos_token: owned(eos_token),
        })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn write(
        &self,
        script: &mut Script,
        tokenizer: &TextTokenizer,
        messages: &[Message],
        answers: &[&[u32]],
        reply: bool,
    ) -> anyhow::Result<()> {
        let marks = Marks::absent_from(messages, &self.source)?;
        let mut n_answers = 0;
        let marked: Vec<Message> = messages
            .iter()
            .map(|message| {
                let broken = |text: &str| tokenizer.added().break_names(text, marks.broken);
                let mut content = broken(&message.content);
                if message.role == "assistant" {
                    content = marks.around(n_answers, if n_answers < answers.len() { "" } else { &content });
                    n_answers += 1;
                }
                Message { role: broken(&message.role), content }
            })
            .collect();
        let name = |given: &Option<String>, tokens: &[u32]| {
            given.clone().or_else(|| tokens.first().and_then(|token| tokenizer.name(*token)).map(str::to_owned))
        };
        let bos_token = name(&self.bos_token, tokenizer.bos()).unwrap_or_default();
        let eos_token = name(&self.eos_token, tokenizer.eos()).unwrap_or_default();
        let text = self.run(move || {
            context! {
                messages => Value::from(Serde(&marked)),
                add_generation_prompt => reply,
                bos_token, eos_token,
                tools => Value::from(()),
                documents => Value::from(()),
            }
        })?;
        marks.read(&text, script, tokenizer, answers);
        Ok(())
    }
}

impl Jinja {
    /// Runs the template in a thread of its own. Fuel does not bound everything: lists that are
    /// doubled again and again cost nothing until they are walked. A thread that takes too long is
    /// left behind, and ends with the program.
    fn run(&self, context: impl FnOnce() -> Value + Send + 'static) -> anyhow::Result<String> {
        let (send, receive) = mpsc::channel();
        let environment = Arc::clone(&self.environment);
        let run = move || {
            let mut written = Limited::default();
            let run =
                |template: minijinja::Template<'_, '_>| template.render_captured_to(context(), &mut written).map(drop);
            let done = environment.get_template(NAME).and_then(run).map_err(|e| describe(&e));
            let _ = send.send(done.map(|()| written.0)); // nobody waits any more
        };
        thread::Builder::new().name("chat template".into()).spawn(run)?;
        match receive.recv_timeout(MOST_TIME) {
            Ok(Ok(text)) => Ok(String::from_utf8(text)?),
            Ok(Err(problem)) => bail!("chat template: {problem}"),
            Err(RecvTimeoutError::Timeout) => {
                bail!("chat template: it runs longer than {} seconds", MOST_TIME.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("chat template: it makes Jinja fail"),
        }
    }
}

/// What a template writes, up to a size that no conversation has.
#[derive(Default)]
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_WRITTEN {
            return Err(io::Error::other(format!("it writes more than {MOST_WRITTEN} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Marks {
    /// Takes characters for private use that neither the messages nor the template have.
    fn absent_from(messages: &[Message], source: &str) -> anyhow::Result<Marks> {
        let mut used: Vec<char> = source.chars().filter(|c| is_private(*c)).collect();
        for message in messages {
            used.extend(message.role.chars().chain(message.content.chars()).filter(|c| is_private(*c)));
        }
        used.sort_unstable();
        let mut absent = PRIVATE.filter(|c| used.binary_search(c).is_err());
        let mut mark = || absent.next().context("the messages have all characters for private use");
        Ok(Marks { broken: mark()?, open: mark()?, begin: mark()?, end: mark()? })
    }

    /// An answer with marks around it, but not around white space: templates trim that away.
    fn around(self, number: usize, content: &str) -> String {
        let text = content.trim();
        let (before, after) = content.split_at(content.len() - content.trim_start().len());
        let after = &after[text.len()..];
        format!("{before}{}{number}{}{text}{}{after}", self.open, self.begin, self.end)
    }

    /// Turns what a template wrote into stretches of text and tokens.
    fn read(self, text: &str, script: &mut Script, tokenizer: &TextTokenizer, answers: &[&[u32]]) {
        let mut rest = text;
        while let Some((before, number, answer, after)) = self.next_answer(rest) {
            // "Assistant: " and the like: the model answers with the space, as it follows none of
            // what opens an answer.
            let (before, space) = before.split_at(before.trim_end_matches(' ').len());
            self.read_text(before, script, tokenizer);
            // The token that ends the answer, if white space alone is between them.
            let end = tokenizer.added().first(after.trim_start());
            let blank = if end.is_some() { &after[..after.len() - after.trim_start().len()] } else { "" };
            match answers.get(number) {
                Some(tokens) => {
                    script.answer_tokens(tokens);
                    script.text(blank);
                }
                None => script.answer(&self.without_marks(&format!("{space}{answer}{blank}"))),
            }
            rest = &after[blank.len()..];
            if let Some(added) = end {
                script.answer_tokens(&[added.token]);
                rest = &rest[added.name.len()..];
            }
        }
        self.read_text(rest, script, tokenizer);
    }

    /// Finds an answer: the text before it, its number, its text, and the text behind.
    fn next_answer(self, text: &str) -> Option<(&str, usize, &str, &str)> {
        let mut from = 0;
        loop {
            let open = from + text[from..].find(self.open)?;
            let inside = &text[open + self.open.len_utf8()..];
            let answer = inside.split_once(self.begin).and_then(|(number, inside)| {
                let (answer, after) = inside.split_once(self.end)?;
                Some((&text[..open], number.parse().ok()?, answer, after)).filter(|_| !answer.contains(self.open))
            });
            if answer.is_some() {
                return answer;
            }
            from = open + self.open.len_utf8(); // the template cut this one
        }
    }

    fn read_text(self, text: &str, script: &mut Script, tokenizer: &TextTokenizer) {
        for part in tokenizer.added().split(text) {
            match part {
                Part::Token(token) => script.tokens(&[token]),
                Part::Text(text) => script.text(&self.without_marks(text)),
            }
        }
    }

    fn without_marks(self, text: &str) -> String {
        text.replace([self.broken, self.open, self.begin, self.end], "")
    }
}

/// Whether a character is one that [`Marks`] takes.
fn is_private(c: char) -> bool {
    PRIVATE.contains(&c)
}

/// Why a template failed, on one line.
fn describe(e: &minijinja::Error) -> String {
    let line = e.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    match (e.kind(), e.detail()) {
        (ErrorKind::WriteFailure, _) => e.source().map_or_else(|| e.to_string(), ToString::to_string),
        (ErrorKind::OutOfFuel, _) => format!("it runs too long, or writes too much{line}"),
        (_, Some(detail)) => format!("{detail}{line}"),
        (kind, None) => format!("{kind}{line}"),
    }
}

fn raise_exception(message: &str) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("it says: {message}")))
}

/// As transformers has it: like Python, and without escapes for HTML and for other scripts.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let pretty = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, OneLine)),
    };
    let fail = |e: &dyn std::fmt::Display| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    written.map_err(|e| fail(&e))?;
    String::from_utf8(json).map_err(|e| fail(&e))
}

/// JSON with Python's spaces.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Replaces `{% generation %}`, by which transformers finds the answers for training.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((tag, after)) = tag.split_once("%}") else { break };
        let word = tag.trim_matches('-').trim();
        let word = match word {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.into(),
        };
        out.extend([before, "{%", &word, "%}"]);
        rest = after;
    }
    out + rest
}
