//! The turns of a conversation, and the part of them that the model reads.

use infer_core::{BOS, EOS, OwnedTokenizer};

use crate::text::TextOut;

/// A conversation. The model reads its youngest turns, as many as the context holds.
pub struct Turns<'t> {
    tokenizer: &'t OwnedTokenizer<&'t [u8]>,
    /// Positions of the KV cache.
    context: usize,
    system: String,
    turns: Vec<Turn>,
    /// The oldest turn that the model reads. The system prompt precedes its message.
    first: usize,
    /// The tokens of the turns from `first` on.
    tokens: Vec<u32>,
    /// Number of these tokens that the KV cache holds.
    cached: usize,
}

struct Turn {
    user: String,
    /// The message in its brackets, without the system prompt.
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl<'t> Turns<'t> {
    pub fn new(tokenizer: &'t OwnedTokenizer<&'t [u8]>, context: usize) -> Turns<'t> {
        let (turns, tokens) = (Vec::new(), Vec::new());
        Turns { tokenizer, context, system: String::new(), turns, first: 0, tokens, cached: 0 }
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
        let n = self.tokenizer.encode(&render(system, ""))?.len();
        if n >= self.context {
            return Ok(Err(n));
        }
        system.clone_into(&mut self.system);
        Ok(Ok(()))
    }

    /// Positions that are left when no turn is dropped.
    pub fn room(&self) -> usize {
        let eos = usize::from(!self.turns.is_empty());
        self.context.saturating_sub(self.tokens.len() + eos)
    }

    /// Tokens of a message that begins a conversation, with the system prompt.
    pub fn len_alone(&self, user: &str) -> anyhow::Result<usize> {
        Ok(self.tokenizer.encode(&render(&self.system, user))?.len())
    }

    /// Tokens of a message behind the turns so far.
    pub fn len_next(&self, user: &str) -> anyhow::Result<usize> {
        let system = if self.turns.is_empty() { &self.system } else { "" };
        Ok(self.tokenizer.encode(&render(system, user))?.len())
    }

    /// Begins a turn with a message that fits alone. Returns the number of tokens by which the
    /// conversation grows.
    pub fn begin(&mut self, user: String) -> anyhow::Result<usize> {
        let eos = usize::from(!self.turns.is_empty());
        let grown = eos + self.len_next(&user)?;
        let prompt = self.tokenizer.encode(&render("", &user))?;
        self.turns.push(Turn { user, prompt, answer: Vec::new() });
        self.arrange()?;
        Ok(grown)
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
            let mut before = turn.prompt.last().copied().unwrap_or(BOS);
            for &token in &turn.answer {
                out.push(self.tokenizer.decode(before, token)?)?;
                before = token;
            }
            out.finish()?;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Lines up the tokens of the turns from `first` on. Those in the KV cache stay there.
    fn arrange(&mut self) -> anyhow::Result<()> {
        let mut tokens = Vec::new();
        for (i, turn) in self.turns.iter().enumerate().skip(self.first) {
            if i > self.first {
                tokens.push(EOS);
                tokens.extend(&turn.prompt);
            } else {
                tokens = self.tokenizer.encode(&render(&self.system, &turn.user))?;
            }
            tokens.extend(&turn.answer);
        }
        let same = self.tokens.iter().zip(&tokens).take_while(|(old, new)| old == new).count();
        // The last token is always read: what follows it is known only then.
        self.cached = self.cached.min(same).min(tokens.len().saturating_sub(1));
        self.tokens = tokens;
        Ok(())
    }
}

fn render(system: &str, user: &str) -> String {
    if system.is_empty() {
        format!("[INST] {user} [/INST]")
    } else {
        format!("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::ModelFiles;

    #[test]
    fn kept_turns_are_lined_up_behind_the_system_prompt() {
        let files = ModelFiles::open(None, None).unwrap();
        let tokenizer = files.tokenizer().unwrap();
        let tokens = |text: &str| tokenizer.encode(text).unwrap();
        let answer = [5, 6, 7];
        let rest = [&tokens("[INST] two [/INST]")[..], &answer, &[EOS], &tokens("[INST] three [/INST]")].concat();
        let first = tokens("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\none [/INST]");
        let all = [&first[..], &answer, &[EOS], &rest].concat();

        let mut turns = Turns::new(&tokenizer, all.len());
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
        let tokenizer = files.tokenizer().unwrap();
        let mut turns = Turns::new(&tokenizer, 100);
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
