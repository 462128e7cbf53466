//! A conversation with a model: messages go in, answers come out.

use std::time::Instant;

use infer_core::Session;
use infer_text::{Template, TextTokenizer};

use super::interrupt::{self, stopped};
use super::turns::Turns;
use crate::note::note;
use crate::session::{ModelFiles, Usage};

/// A conversation and everything that continues it.
pub struct Talker<'a> {
    pub session: Session<'a>,
    pub turns: Turns<'a>,
    files: &'a ModelFiles,
    tokenizer: &'a TextTokenizer,
    /// The tokens that end an answer.
    stops: Vec<u32>,
    /// Positions of the KV cache.
    pub context: usize,
    /// Positions of the model.
    seq_len: usize,
    /// Whether the oldest turns make room for new ones.
    pub endless: bool,
}

/// How an answer came about.
pub struct Answer {
    pub finish: Finish,
    /// Turns that were dropped while it was written.
    pub dropped: usize,
    pub rate: Rate,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// The context is full.
    Length,
    /// The person ended it.
    Interrupted,
}

impl<'a> Talker<'a> {
    pub fn new(
        session: Session<'a>,
        files: &'a ModelFiles,
        tokenizer: &'a TextTokenizer,
        template: &'a Template,
        context: usize,
        endless: bool,
    ) -> anyhow::Result<Talker<'a>> {
        let turns = Turns::new(tokenizer, template, context)?;
        let stops = template.stops(tokenizer)?;
        let seq_len = files.model()?.config().seq_len;
        Ok(Talker { session, turns, files, tokenizer, stops, context, seq_len, endless })
    }

    /// Sets the first system prompt.
    pub fn start(&mut self, system: &str) -> anyhow::Result<()> {
        self.turns.set_system(system)?.map_err(|n| Usage(self.no_room_beside(system, n)).into())
    }

    /// Begins a turn with a message that is not [`too_long`](Talker::too_long). Returns the number
    /// of turns that were dropped for it.
    pub fn begin(&mut self, text: String) -> anyhow::Result<usize> {
        interrupt::begin();
        let grown = self.turns.begin(text)?;
        // llama2.c draws a random number at every position, also where the next token is known.
        (1..grown).for_each(|_| self.session.sampler.skip());
        self.turns.drop_oldest()
    }

    /// Writes the answer, up to a token that ends it, Ctrl-C or the end of the context.
    pub fn answer(&mut self, mut show: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<Answer> {
        let mut rate = Rate::start(self.turns.unread().0.len());
        let (mut dropped, mut finish) = (0, Finish::Stop);
        while let Some(token) = self.next_token()? {
            rate.count();
            // A model that was not taught to chat never ends an answer, but writes BOS before the
            // next story. llama2.c goes on there.
            if self.stops.contains(&token) || (self.endless && self.tokenizer.bos().contains(&token)) {
                break;
            }
            show(&self.tokenizer.decode(self.turns.last(), token))?;
            self.turns.push(token);
            if self.endless {
                dropped += self.turns.drop_oldest()?;
            }
            if !self.turns.fit() {
                finish = Finish::Length;
                break;
            }
        }
        if stopped() {
            finish = Finish::Interrupted;
            self.turns.take_back_unanswered()?;
        }
        Ok(Answer { finish, dropped, rate })
    }

    /// Reads what the model has not read, and picks the token that follows. `None` after Ctrl-C.
    fn next_token(&mut self) -> anyhow::Result<Option<u32>> {
        let (tokens, pos) = self.turns.unread();
        self.session.read_from(pos, tokens, stopped)?;
        self.turns.set_cached(self.session.pos());
        if stopped() {
            return Ok(None);
        }
        Ok(Some(self.session.next_token().map_err(|e| self.files.explain(e))?))
    }

    /// The reason why no message fits beside a system prompt of `n` tokens.
    pub fn no_room_beside(&self, system: &str, n: usize) -> String {
        let what = if system.is_empty() { "an empty message" } else { "the system prompt" };
        format!("{what} has {n} tokens, and the context {} positions{}", self.context, self.advice(!system.is_empty()))
    }

    /// The reason why a message does not fit; `None` if it fits.
    pub fn too_long(&self, text: &str) -> anyhow::Result<Option<String>> {
        let context = self.context;
        // A system prompt may have changed since the first turn: it must fit beside the message
        // too.
        let alone = self.turns.len_alone(text)?;
        let (n, room) = if self.endless || alone > context {
            (alone, context)
        } else {
            (self.turns.len_next(text)?, self.turns.room())
        };
        if n <= room {
            return Ok(None);
        }
        let advice = self.advice(true);
        Ok(Some(if room < context {
            format!("the message has {n} tokens, and {room} of {context} positions are left{advice}")
        } else {
            let with = if self.turns.system().is_empty() { "" } else { ", with the system prompt" };
            format!("the message has {n} tokens{with}, and the context {context} positions{advice}")
        }))
    }

    /// Advice for a text that does not fit.
    fn advice(&self, shorten: bool) -> String {
        let n = self.seq_len;
        match (shorten, self.context < n) {
            (true, true) => format!(": shorten it, or raise -n (the model has {n})"),
            (true, false) => ": shorten it".into(),
            (false, true) => format!(": raise -n (the model has {n})"),
            (false, false) => String::new(),
        }
    }

    pub fn note_dropped(&self, dropped: usize) -> anyhow::Result<()> {
        if dropped == 0 {
            return Ok(());
        }
        let (s, context, kept) = (if dropped == 1 { "" } else { "s" }, self.context, self.turns.kept());
        let system = if self.turns.system().is_empty() { "" } else { ", and the system prompt" };
        note(format!(
            "the context of {context} positions is full: {dropped} oldest turn{s} dropped, {kept} kept{system}"
        ))
    }
}

/// Measures the speed of an answer.
pub struct Rate {
    /// Tokens that were read for it.
    pub prompt: usize,
    start: Instant,
    /// When the first token of the answer came.
    first: Option<Instant>,
    /// Tokens after the first.
    more: usize,
}

impl Rate {
    fn start(prompt: usize) -> Rate {
        Rate { prompt, start: Instant::now(), first: None, more: 0 }
    }

    fn count(&mut self) {
        match self.first {
            None => self.first = Some(Instant::now()),
            Some(_) => self.more += 1,
        }
    }

    /// Tokens of the answer, the one that ends it included.
    pub fn tokens(&self) -> usize {
        usize::from(self.first.is_some()) + self.more
    }

    /// Tokens per second: of the answer behind its first token, and of what was read before that.
    pub fn per_second(&self) -> Option<(f64, f64)> {
        let first = self.first.filter(|_| self.more > 0)?;
        let rate = self.more as f64 / first.elapsed().as_secs_f64();
        Some((rate, self.prompt as f64 / (first - self.start).as_secs_f64()))
    }

    pub fn report(&self) -> anyhow::Result<()> {
        let Some((rate, prompt)) = self.per_second() else { return Ok(()) };
        note(format!("achieved tok/s: {rate:.1} (prompt: {prompt:.1})"))
    }
}
