//! The templates that this crate knows by name.

use anyhow::{Context, ensure};

use super::script::{Message, Script};
use crate::tokenizer::TextTokenizer;

/// A built-in template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// `[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {answer}`, BOS before each turn and
    /// EOS behind.
    Llama2,
    /// `<|im_start|>{role}\n{content}<|im_end|>\n`
    ChatMl,
    /// `<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>`
    Llama3,
    /// `{system}\n{user}\n {answer}`, BOS at the beginning and EOS behind each answer.
    Plain,
}

impl Named {
    const ALL: [(Named, &'static str); 4] =
        [(Named::Llama2, "llama2"), (Named::ChatMl, "chatml"), (Named::Llama3, "llama3"), (Named::Plain, "plain")];

    pub fn parse(name: &str) -> Option<Named> {
        Named::ALL.iter().find(|(_, known)| *known == name).map(|(named, _)| *named)
    }

    pub fn name(self) -> &'static str {
        Named::ALL.iter().find(|(named, _)| *named == self).map_or("", |(_, name)| name)
    }

    /// The same template for transformers, whose tokenizers find BOS, EOS and the other tokens in
    /// the text.
    pub fn jinja_source(self) -> &'static str {
        match self {
            Named::Llama2 => include_str!("llama2.jinja"),
            Named::ChatMl => include_str!("chatml.jinja"),
            Named::Llama3 => include_str!("llama3.jinja"),
            Named::Plain => include_str!("plain.jinja"),
        }
    }

    pub fn write(
        self,
        script: &mut Script,
        tokenizer: &TextTokenizer,
        messages: &[Message],
        answers: &[&[u32]],
        reply: bool,
    ) -> anyhow::Result<()> {
        let mut writer = Writer { template: self, script, tokenizer, answers: answers.iter() };
        match self {
            Named::Llama2 => writer.llama2(messages),
            Named::ChatMl => writer.chatml(messages, reply),
            Named::Llama3 => writer.llama3(messages, reply),
            Named::Plain => writer.plain(messages),
        }
    }
}

struct Writer<'a> {
    template: Named,
    script: &'a mut Script,
    tokenizer: &'a TextTokenizer,
    answers: std::slice::Iter<'a, &'a [u32]>,
}

impl Writer<'_> {
    fn llama2(&mut self, messages: &[Message]) -> anyhow::Result<()> {
        let (system, turns) = split_system(messages);
        let mut system = system.filter(|system| !system.is_empty());
        for (i, message) in turns.iter().enumerate() {
            self.check_turn(i, message)?;
            if i % 2 == 1 {
                self.answer(&format!(" {}", message.content), self.end()?);
                continue;
            }
            self.script.tokens(self.tokenizer.bos());
            let user = &message.content;
            self.script.text(&match system.take() {
                Some(system) => format!("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"),
                None => format!("[INST] {user} [/INST]"),
            });
        }
        Ok(())
    }

    fn plain(&mut self, messages: &[Message]) -> anyhow::Result<()> {
        let (system, turns) = split_system(messages);
        self.script.tokens(self.tokenizer.bos());
        for system in system.iter().filter(|system| !system.is_empty()) {
            self.script.text(&format!("{system}\n"));
        }
        for (i, message) in turns.iter().enumerate() {
            self.check_turn(i, message)?;
            if i % 2 == 1 {
                self.answer(&format!(" {}", message.content), self.end()?);
            } else {
                self.script.text(&format!("{}\n", message.content));
            }
        }
        Ok(())
    }

    fn chatml(&mut self, messages: &[Message], reply: bool) -> anyhow::Result<()> {
        let (start, end) = (self.token("<|im_start|>")?, self.token("<|im_end|>")?);
        self.script.tokens(self.tokenizer.bos());
        for message in messages.iter().filter(|message| !is_empty_system(message)) {
            self.script.tokens(&[start]);
            self.script.text(&format!("{}\n", message.role));
            if message.role == "assistant" {
                self.answer(&message.content, end);
            } else {
                self.script.text(&message.content);
                self.script.tokens(&[end]);
            }
            self.script.text("\n");
        }
        if reply {
            self.script.tokens(&[start]);
            self.script.text("assistant\n");
        }
        Ok(())
    }

    fn llama3(&mut self, messages: &[Message], reply: bool) -> anyhow::Result<()> {
        let end = self.token("<|eot_id|>")?;
        self.script.tokens(self.tokenizer.bos());
        for message in messages.iter().filter(|message| !is_empty_system(message)) {
            self.llama3_head(&message.role)?;
            if message.role == "assistant" {
                self.answer(message.content.trim(), end);
            } else {
                self.script.text(message.content.trim());
                self.script.tokens(&[end]);
            }
        }
        if reply {
            self.llama3_head("assistant")?;
        }
        Ok(())
    }

    fn llama3_head(&mut self, role: &str) -> anyhow::Result<()> {
        self.script.tokens(&[self.token("<|start_header_id|>")?]);
        self.script.text(role);
        self.script.tokens(&[self.token("<|end_header_id|>")?]);
        self.script.text("\n\n");
        Ok(())
    }

    /// An answer, as the model gave it or as a text, and its end.
    fn answer(&mut self, text: &str, end: u32) {
        match self.answers.next() {
            Some(tokens) => self.script.answer_tokens(tokens),
            None => self.script.answer(text),
        }
        self.script.answer_tokens(&[end]);
    }

    /// The EOS behind an answer.
    fn end(&self) -> anyhow::Result<u32> {
        let name = self.template.name();
        self.tokenizer.eos().first().copied().with_context(|| {
            format!("the chat template {name} ends answers with EOS, and the model's header names no such token")
        })
    }

    fn token(&self, name: &str) -> anyhow::Result<u32> {
        self.tokenizer.token(name).with_context(|| {
            let template = self.template.name();
            format!("the chat template {template} needs the token {name}, which the vocabulary lacks: take another")
        })
    }

    /// Checks that users and assistants take turns.
    fn check_turn(&self, i: usize, message: &Message) -> anyhow::Result<()> {
        let (template, role) = (self.template.name(), &message.role);
        let due = ["user", "assistant"][i % 2];
        ensure!(role == due, "the chat template {template} has a message of the {due} here, not of {role:?}");
        Ok(())
    }
}

/// The system prompt, which comes first, and the turns.
fn split_system(messages: &[Message]) -> (Option<&str>, &[Message]) {
    match messages {
        [first, turns @ ..] if first.role == "system" => (Some(&first.content), turns),
        turns => (None, turns),
    }
}

fn is_empty_system(message: &Message) -> bool {
    message.role == "system" && message.content.is_empty()
}
