//! Chat templates: from messages to tokens.
//!
//! A template gives stretches of text and tokens. The texts of people are part of the stretches,
//! and these are encoded without special tokens: nobody forges the end of a turn.

mod jinja;
mod named;
mod script;

use std::path::Path;

use anyhow::{Context, bail};
use infer_core::format::Header;

use crate::tokenizer::TextTokenizer;
use jinja::Jinja;
use named::Named;
use script::Script;

pub use script::{Message, Rendered};

/// The file name of a template beside its model.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The name, in a model's header, of a template that lies beside the model.
pub const BESIDE: &str = "jinja";
/// Bytes of the largest template file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// How a model wants its conversations written down.
#[derive(Debug)]
pub struct Template {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Named(Named),
    Jinja(Box<Jinja>),
}

impl Template {
    /// One of the built-in templates: "llama2", "chatml", "llama3" or "plain".
    ///
    /// # Errors
    /// There is none of this name.
    pub fn named(name: &str) -> anyhow::Result<Template> {
        match Named::parse(name) {
            Some(named) => Ok(Template { kind: Kind::Named(named) }),
            None => bail!("there is no chat template {name:?}: take llama2, chatml, llama3, plain or a Jinja file"),
        }
    }

    /// A Jinja template as Hugging Face has them. Without `bos_token` and `eos_token` it gets the
    /// names of the tokenizer's.
    ///
    /// # Errors
    /// The source has a syntax error or parts that this does not know.
    pub fn jinja(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> anyhow::Result<Template> {
        Ok(Template { kind: Kind::Jinja(Box::new(Jinja::new(source, bos_token, eos_token)?)) })
    }

    /// Reads a Jinja file.
    ///
    /// # Errors
    /// It cannot be read, or as [`jinja`](Template::jinja).
    pub fn file(path: &Path) -> anyhow::Result<Template> {
        let name = || format!("chat template {}", path.display());
        let about = path.metadata().with_context(name)?;
        anyhow::ensure!(about.is_file(), "{}: not a regular file", name());
        anyhow::ensure!(about.len() <= MOST_BYTES, "{} has more than {MOST_BYTES} bytes", name());
        let source = std::fs::read_to_string(path).with_context(name)?;
        Template::jinja(&source, None, None).with_context(name)
    }

    /// The template that a model's header names; for "jinja", the file chat_template.jinja in this
    /// folder. `None` if it names none.
    ///
    /// # Errors
    /// As [`named`](Template::named) and [`file`](Template::file).
    pub fn of(header: &Header, folder: &Path) -> anyhow::Result<Option<Template>> {
        match header.template.as_str() {
            "" => Ok(None),
            BESIDE => Template::file(&folder.join(CHAT_TEMPLATE)).map(Some),
            name => Template::named(name).map(Some).context("the model's header"),
        }
    }

    /// Its name in a model's header.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Named(named) => named.name(),
            Kind::Jinja(_) => BESIDE,
        }
    }

    /// The template as a Jinja source, for other programs.
    pub fn jinja_source(&self) -> &str {
        match &self.kind {
            Kind::Named(named) => named.jinja_source(),
            Kind::Jinja(jinja) => jinja.source(),
        }
    }

    /// Writes down a conversation. `reply` adds what opens the assistant's next answer.
    ///
    /// # Errors
    /// The template refuses the messages, or needs tokens that the vocabulary lacks.
    pub fn render(&self, tokenizer: &TextTokenizer, messages: &[Message], reply: bool) -> anyhow::Result<Rendered> {
        self.render_with(tokenizer, messages, &[], reply)
    }

    /// As [`render`](Template::render), with the very tokens that a model answered in place of the
    /// content of the assistant's first messages.
    ///
    /// # Errors
    /// As [`render`](Template::render).
    pub fn render_with(
        &self,
        tokenizer: &TextTokenizer,
        messages: &[Message],
        answers: &[&[u32]],
        reply: bool,
    ) -> anyhow::Result<Rendered> {
        let mut script = Script::default();
        match &self.kind {
            Kind::Named(named) => named.write(&mut script, tokenizer, messages, answers, reply)?,
            Kind::Jinja(jinja) => jinja.write(&mut script, tokenizer, messages, answers, reply)?,
        }
        script.encode(tokenizer)
    }

    /// The tokens that end an answer: the tokenizer's EOS, and the one that the template writes.
    ///
    /// # Errors
    /// As [`render`](Template::render).
    pub fn stops(&self, tokenizer: &TextTokenizer) -> anyhow::Result<Vec<u32>> {
        let mut stops = tokenizer.eos().to_vec();
        let messages = [Message::new("user", "a"), Message::new("assistant", "a")];
        let Rendered { tokens, answer } = self.render(tokenizer, &messages, false)?;
        let last = tokens.iter().zip(&answer).rfind(|(_, answer)| **answer).map(|(token, _)| *token);
        stops.extend(last.filter(|last| tokenizer.name(*last).is_some() && !stops.contains(last)));
        Ok(stops)
    }
}
