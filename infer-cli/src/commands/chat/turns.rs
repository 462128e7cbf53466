//! The turns of a conversation, and the part of them that the model reads.

use anyhow::ensure;
use infer_core::BOS;
use infer_text::{Message, Template, TextTokenizer};
use serde::{Deserialize, Serialize};

use crate::text::TextOut;

/// A conversation. The model reads its youngest turns, as many as the context holds.
pub struct Turns<'t> {
    tokenizer: &'t TextTokenizer,
    template: &'t Template,
    /// Positions of the KV cache.
    context: usize,
    /// Tokens that the template puts behind an answer.
    closing: usize,
    system: String,
    turns: Vec<Turn>,
    /// The oldest turn that the model reads. The system prompt precedes its message.
    first: usize,
    /// The tokens of the turns from `first` on.
    tokens: Vec<u32>,
    /// Number of these tokens that the KV cache holds.
    cached: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Turn {
    user: String,
    /// The token before the answer, which decides how its first token is shown.
    before: u32,
    answer: Vec<u32>,
}

/// What of a conversation a file keeps.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    system: String,
    turns: Vec<Turn>,
    first: usize,
    pub tokens: Vec<u32>,
    pub cached: usize,
}

impl<'t> Turns<'t> {
    pub fn new(tokenizer: &'t TextTokenizer, template: &'t Template, context: usize) -> anyhow::Result<Turns<'t>> {
        let (turns, tokens) = (Vec::new(), Vec::new());
        let system = String::new();
        let mut this = Turns { tokenizer, template, context, closing: 0, system, turns, first: 0, tokens, cached: 0 };
        let turn = [Turn { user: "a".into(), before: 0, answer: Vec::new() }];
        this.closing = this.closed(&turn)?.saturating_sub(this.open(&turn)?.len());
        Ok(this)
    }

    /// Forgets all turns, but not the system prompt.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.tokens.clear();
        (self.first, self.cached) = (0, 0);
    }

    pub fn system(&self) -> &str {
        &self.system
    }

    /// Changes the system prompt, from the next message on. Keeps the old one where no message fits
    /// beside the new one, and returns the number of its tokens then.
    pub fn set_system(&mut self, system: &str) -> anyhow::Result<Result<(), usize>> {
        let old = std::mem::replace(&mut self.system, system.to_owned());
        match self.len_alone("") {
            Ok(n) if n < self.context => Ok(Ok(())),
            refused => {
                self.system = old;
                refused.map(Err)
            }
        }
    }

    /// Positions that are left when no turn is dropped.
    pub fn room(&self) -> usize {
        let closing = if self.turns.is_empty() { 0 } else { self.closing };
        self.context.saturating_sub(self.tokens.len() + closing)
    }

    /// Tokens of a message that begins a conversation, with the system prompt.
    pub fn len_alone(&self, user: &str) -> anyhow::Result<usize> {
        Ok(self.open(&[Turn { user: user.into(), before: 0, answer: Vec::new() }])?.len())
    }

    /// Tokens of a message behind the turns so far.
    pub fn len_next(&self, user: &str) -> anyhow::Result<usize> {
        let turns = &self.turns[self.first..];
        if turns.is_empty() {
            return self.len_alone(user);
        }
        let next = Turn { user: user.into(), before: 0, answer: Vec::new() };
        let all: Vec<Turn> = turns.iter().cloned().chain([next]).collect();
        Ok(self.open(&all)?.len().saturating_sub(self.closed(turns)?))
    }

    /// Begins a turn with a message that fits alone. Returns the number of tokens by which the
    /// conversation grows. After an error it is as before.
    pub fn begin(&mut self, user: String) -> anyhow::Result<usize> {
        let before = self.open(&self.turns[self.first..])?.len();
        self.turns.push(Turn { user, before: BOS, answer: Vec::new() });
        if let Err(e) = self.arrange() {
            self.turns.pop();
            return Err(e);
        }
        Ok(self.tokens.len().saturating_sub(before))
    }

    /// Adds a token to the answer.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(turn) = self.turns.last_mut() {
            turn.answer.push(token);
        }
    }

    /// Takes back the last turn when its answer has not begun.
    pub fn take_back_unanswered(&mut self) -> anyhow::Result<()> {
        if self.turns.pop_if(|turn| turn.answer.is_empty()).is_some() {
            self.first = self.first.min(self.turns.len().saturating_sub(1));
            self.arrange()?;
        }
        Ok(())
    }

    /// Whether the context holds all tokens.
    pub fn fit(&self) -> bool {
        self.tokens.len() <= self.context
    }

    /// Where the context does not hold all tokens, drops the oldest turns until the others take at
    /// most half of it, or one is left: half, because the model has to read them again. Returns the
    /// number of turns dropped.
    pub fn drop_oldest(&mut self) -> anyhow::Result<usize> {
        if self.fit() {
            return Ok(0);
        }
        let before = self.first;
        while self.first + 1 < self.turns.len() && self.tokens.len() > self.context / 2 {
            self.first += 1;
            self.arrange()?;
        }
        Ok(self.first - before)
    }

    /// Number of turns that the model reads.
    pub fn kept(&self) -> usize {
        self.turns.len() - self.first
    }

    /// The tokens that the KV cache lacks, and the position of the first.
    pub fn unread(&self) -> (&[u32], usize) {
        (&self.tokens[self.cached..], self.cached)
    }

    /// Notes that the KV cache holds the first `cached` tokens now.
    pub fn set_cached(&mut self, cached: usize) {
        self.cached = cached.min(self.tokens.len());
    }

    /// The last token, which decides how the next one is shown.
    pub fn last(&self) -> u32 {
        self.tokens.last().copied().unwrap_or(BOS)
    }

    /// All turns as text, the dropped ones too.
    pub fn transcript(&self) -> anyhow::Result<String> {
        let mut text = Vec::new();
        if !self.system.is_empty() {
            text.extend(format!("System: {}\n", self.system).bytes());
        }
        for turn in &self.turns {
            text.extend(format!("User: {}\nAssistant: ", turn.user).bytes());
            let mut out = TextOut::new(&mut text);
            let mut before = turn.before;
            for &token in &turn.answer {
                out.push(&self.tokenizer.decode(before, token))?;
                before = token;
            }
            out.finish()?;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Number of turns, the dropped ones included.
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// The conversation for a file.
    pub fn keep(&self) -> Kept {
        Kept {
            system: self.system.clone(),
            turns: self.turns.clone(),
            first: self.first,
            tokens: self.tokens.clone(),
            cached: self.cached,
        }
    }

    /// Takes up a conversation from a file. What the template writes in another way now, such as
    /// the date, is read again.
    pub fn take_up(&mut self, kept: Kept) -> anyhow::Result<()> {
        let Kept { system, turns, first, tokens, cached } = kept;
        ensure!(first < turns.len().max(1) && cached <= tokens.len(), "its conversation makes no sense");
        (self.system, self.turns, self.first, self.cached) = (system, turns, first, cached);
        self.tokens.clone_from(&tokens);
        self.arrange()?;
        if self.tokens == tokens {
            self.cached = cached; // a message comes first, so that something is left to read
        }
        Ok(())
    }

    /// Lines up the tokens of the turns from `first` on. Those in the KV cache stay there.
    fn arrange(&mut self) -> anyhow::Result<()> {
        let tokens = self.open(&self.turns[self.first..])?;
        let same = self.tokens.iter().zip(&tokens).take_while(|(old, new)| old == new).count();
        // The last token is always read: what follows it is known only then.
        self.cached = self.cached.min(same).min(tokens.len().saturating_sub(1));
        self.tokens = tokens;
        if let Some(turn) = self.turns.last_mut() {
            let at = self.tokens.len() - turn.answer.len();
            turn.before = at.checked_sub(1).map_or(BOS, |at| self.tokens[at]);
        }
        Ok(())
    }

    /// The tokens of these turns, of which the last answer may go on.
    fn open(&self, turns: &[Turn]) -> anyhow::Result<Vec<u32>> {
        let Some((last, before)) = turns.split_last() else { return Ok(Vec::new()) };
        let mut messages = self.messages(before);
        messages.push(Message::new("user", &last.user));
        let mut tokens = self.template.render_with(self.tokenizer, &messages, &answers(before), true)?.tokens;
        tokens.extend(&last.answer);
        Ok(tokens)
    }

    /// The number of tokens of these turns, of which the last answer has ended.
    fn closed(&self, turns: &[Turn]) -> anyhow::Result<usize> {
        Ok(self.template.render_with(self.tokenizer, &self.messages(turns), &answers(turns), false)?.tokens.len())
    }

    /// The system prompt and turns as messages. The answers stand for themselves, as tokens.
    fn messages(&self, turns: &[Turn]) -> Vec<Message> {
        let system = (!self.system.is_empty()).then(|| Message::new("system", &self.system));
        let turns = turns.iter().flat_map(|turn| [Message::new("user", &turn.user), Message::new("assistant", "")]);
        system.into_iter().chain(turns).collect()
    }
}

fn answers(turns: &[Turn]) -> Vec<&[u32]> {
    turns.iter().map(|turn| &*turn.answer).collect()
}

#[cfg(test)]
mod tests {
    use infer_core::EOS;
    use infer_text::Special;

    use super::*;
    use crate::session::ModelFiles;

    #[test]
    fn kept_turns_are_lined_up_behind_the_system_prompt() {
        let files = ModelFiles::open(None, None).unwrap();
        let (tokenizer, template) = (files.tokenizer().unwrap(), Template::named("llama2").unwrap());
        let tokens = |text: &str| [&[BOS], &tokenizer.encode(text, Special::AsText).unwrap()[..]].concat();
        let answer = [5, 6, 7];
        let rest = [&tokens("[INST] two [/INST]")[..], &answer, &[EOS], &tokens("[INST] three [/INST]")].concat();
        let first = tokens("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\none [/INST]");
        let all = [&first[..], &answer, &[EOS], &rest].concat();

        let mut turns = Turns::new(&tokenizer, &template, all.len()).unwrap();
        turns.set_system("Be kind.").unwrap().unwrap();
        for (user, grown) in [("one", first.len()), ("two", 1 + tokens("[INST] two [/INST]").len())] {
            assert_eq!(turns.begin(user.into()).unwrap(), grown);
            answer.iter().for_each(|&token| turns.push(token));
            let (unread, pos) = turns.unread();
            let cached = pos + unread.len();
            turns.set_cached(cached);
        }
        turns.begin("three".into()).unwrap();
        assert_eq!(turns.tokens, all);
        assert_eq!(turns.unread().1, all.len() - 1 - tokens("[INST] three [/INST]").len(), "the EOS and the message");
        assert_eq!(turns.drop_oldest().unwrap(), 0, "all fit");
        turns.push(8);
        assert!(turns.drop_oldest().unwrap() > 0);
        let system = "<<SYS>>\nBe kind.\n<</SYS>>\n\n";
        let want = match turns.kept() {
            2 => {
                [&tokens(&format!("[INST] {system}two [/INST]"))[..], &answer, &[EOS], &tokens("[INST] three [/INST]")]
                    .concat()
            }
            _ => tokens(&format!("[INST] {system}three [/INST]")),
        };
        assert_eq!(turns.tokens, [&want[..], &[8]].concat());
        assert!(turns.unread().1 < first.len(), "what stood elsewhere is read again");
    }

    #[test]
    fn an_unanswered_turn_is_taken_back() {
        let files = ModelFiles::open(None, None).unwrap();
        let (tokenizer, template) = (files.tokenizer().unwrap(), Template::named("llama2").unwrap());
        let mut turns = Turns::new(&tokenizer, &template, 100).unwrap();
        for _ in 0..2 {
            turns.begin("one".into()).unwrap();
            turns.set_cached(usize::MAX);
            turns.take_back_unanswered().unwrap();
            assert!(turns.turns.is_empty() && turns.tokens.is_empty());
        }
        turns.begin("one".into()).unwrap();
        turns.push(5);
        turns.take_back_unanswered().unwrap();
        assert_eq!(turns.turns.len(), 1);
    }
}
