//! Talks in turns, in the prompt format of Llama 2 Chat.

mod input;
mod turns;

use std::io::{self, StdoutLock, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use infer_core::{BOS, EOS, Limits, OwnedTokenizer, Session};

use self::input::{Asked, Input, Quiet, normalize};
use self::turns::Turns;
use crate::args::GenerateArgs;
use crate::note::note;
use crate::session::{BATCH, ModelFiles, Usage, budget, buffers, session, start_pool};
use crate::source::folder_of;
use crate::text::TextOut;

const HELP: &str = "\
/reset        forgets the conversation, but not the system prompt
/system TEXT  changes the system prompt; without TEXT, removes it
/save FILE    writes the conversation to a new file
/help         shows this
A text that begins with a slash is sent with two: //text
Ctrl-C stops an answer or clears the line, Ctrl-D ends the chat. A paste of several lines is one message.";

/// Whether Ctrl-C stops an answer, not the program.
static IN_TERMINAL: AtomicBool = AtomicBool::new(false);
/// Whether the person asked for the end of the answer.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Handles Ctrl-C: ends the answer that is being written. Returns false when the program should end
/// instead.
pub fn stop() -> bool {
    let in_terminal = IN_TERMINAL.load(Relaxed);
    STOPPED.store(in_terminal, Relaxed);
    in_terminal
}

fn stopped() -> bool {
    STOPPED.load(Relaxed)
}

pub fn run(files: &ModelFiles, args: &GenerateArgs) -> anyhow::Result<()> {
    let tokenizer = files.tokenizer()?;
    let config = *files.model()?.config();
    let mut input = Input::open()?;
    let context = budget(args.steps.unwrap_or(0), &config);
    let pool = start_pool(args.threads, &config, 1)?;
    let mut buffers = buffers(
        &config,
        Limits::new(context).with_batch(BATCH.min(context)).with_threads(pool.threads().get()).with_kv(args.kv.into()),
    )?;
    IN_TERMINAL.store(input.is_terminal(), Relaxed);
    let mut chat = Chat {
        session: session(files, &mut buffers, &pool, &args.sampling)?,
        turns: Turns::new(&tokenizer, context),
        files,
        tokenizer: &tokenizer,
        context,
        seq_len: config.seq_len,
        // A person talks on and on. Input from elsewhere ends where -n says, as in llama2.c.
        endless: input.is_terminal() || args.steps.is_none_or(|n| n == 0),
        out: TextOut::new(io::stdout().lock()),
        refused: 0,
    };
    chat.start(&mut input, args.system_prompt.as_deref())?;
    chat.talk(&mut input, args.prompt.as_deref())?;
    if chat.refused > 0 && !input.is_terminal() {
        return Err(Usage(format!("lines refused: {}", chat.refused)).into());
    }
    Ok(())
}

/// A conversation and everything that continues it.
struct Chat<'a> {
    session: Session<'a>,
    turns: Turns<'a>,
    files: &'a ModelFiles,
    tokenizer: &'a OwnedTokenizer<&'a [u8]>,
    /// Positions of the KV cache.
    context: usize,
    /// Positions of the model.
    seq_len: usize,
    /// Whether the oldest turns make room for new ones.
    endless: bool,
    out: TextOut<StdoutLock<'static>>,
    /// Number of lines that were too long or not text, and of commands that failed.
    refused: usize,
}

/// A line of input.
enum Entry<'a> {
    Message(&'a str),
    Reset,
    System(&'a str),
    Save(&'a str),
    Help,
    Unknown,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Entry<'a> {
        let Some(command) = line.strip_prefix('/') else { return Entry::Message(line) };
        if command.starts_with('/') {
            return Entry::Message(command);
        }
        let (word, text) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (word, text.trim()) {
            ("reset", "") => Entry::Reset,
            ("system", text) => Entry::System(text),
            ("save", file) if !file.is_empty() => Entry::Save(file),
            ("help", "") => Entry::Help,
            _ => Entry::Unknown,
        }
    }
}

impl Chat<'_> {
    /// Sets the system prompt: the given one, or the one that is asked for.
    fn start(&mut self, input: &mut Input, system: Option<&str>) -> anyhow::Result<()> {
        let system = match system {
            Some(system) => normalize(system),
            None => match input.ask(&mut self.out, "Enter system prompt (optional): ")? {
                Asked::Text(system) => system,
                Asked::Unusable(why) => return Err(Usage(why).into()),
                Asked::End => String::new(),
            },
        };
        self.turns.set_system(&system)?.map_err(|n| Usage(self.no_room_beside(&system, n)).into())
    }

    fn talk(&mut self, input: &mut Input, first: Option<&str>) -> anyhow::Result<()> {
        if let Some(first) = first {
            let first = normalize(first);
            if let Some(problem) = self.too_long(&first)? {
                return Err(Usage(problem).into());
            }
            self.say(input, first)?;
        }
        while self.endless || self.turns.room() > 0 {
            let line = match input.ask(&mut self.out, "User: ")? {
                Asked::Text(line) => line,
                Asked::Unusable(why) => {
                    self.refuse(&why)?;
                    continue;
                }
                Asked::End if input.is_terminal() => return Ok(()),
                Asked::End => return Ok(self.out.finish()?),
            };
            if input.is_terminal() && line.trim().is_empty() {
                continue; // Enter was pressed by mistake
            }
            input.remember(&line)?;
            match Entry::parse(&line) {
                Entry::Message(text) => match self.too_long(text)? {
                    Some(problem) => self.refuse(&problem)?,
                    None => self.say(input, text.to_owned())?,
                },
                Entry::Reset => {
                    self.turns.reset();
                    note("the conversation begins anew")?;
                }
                Entry::System(system) => self.change_system(system)?,
                Entry::Save(file) => match save(Path::new(file), &self.turns.transcript()?) {
                    Ok(()) => note(format!("saved to {file}"))?,
                    Err(e) => self.refuse(&format!("{e:#}"))?,
                },
                Entry::Help => tell(HELP)?,
                Entry::Unknown => self.refuse(&format!(
                    "no such command: {}. /help lists them; a text that begins with a slash is sent with two: //text",
                    line.lines().next().unwrap_or_default()
                ))?,
            }
        }
        note(format!("the chat ends: its {} positions (-n) are used", self.context))
    }

    fn change_system(&mut self, system: &str) -> anyhow::Result<()> {
        let old = self.turns.system().to_owned();
        if let Err(n) = self.turns.set_system(system)? {
            return self.refuse(&self.no_room_beside(system, n));
        }
        match (old.as_str(), system) {
            ("", "") => note("there is no system prompt"),
            (old, "") => note(format!("the system prompt is removed; it was: {old}")),
            _ => note("the system prompt is changed, from the next message on"),
        }
    }

    /// Says why a line has no effect, and counts it.
    fn refuse(&mut self, problem: &str) -> anyhow::Result<()> {
        self.refused += 1;
        tell(&format!("error: {problem}"))
    }

    /// The reason why no message fits beside a system prompt of `n` tokens.
    fn no_room_beside(&self, system: &str, n: usize) -> String {
        let what = if system.is_empty() { "an empty message" } else { "the system prompt" };
        format!("{what} has {n} tokens, and the context {} positions{}", self.context, self.advice(!system.is_empty()))
    }

    /// The reason why a message does not fit; `None` if it fits.
    fn too_long(&self, text: &str) -> anyhow::Result<Option<String>> {
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

    /// One turn: a message that fits, and the answer.
    fn say(&mut self, input: &Input, text: String) -> anyhow::Result<()> {
        STOPPED.store(false, Relaxed);
        let _quiet = Quiet::new(input);
        let grown = self.turns.begin(text)?;
        // llama2.c draws a random number at every position, also where the next token is known.
        (1..grown).for_each(|_| self.session.sampler.skip());
        let dropped = self.turns.drop_oldest()?;
        self.note_dropped(dropped)?;
        self.out.say("Assistant: ")?;
        self.answer()
    }

    /// Writes the answer, up to EOS, Ctrl-C or the end of the context.
    fn answer(&mut self) -> anyhow::Result<()> {
        let mut rate = Rate::start(self.turns.unread().0.len());
        let (mut dropped, mut cut) = (0, false);
        while let Some(token) = self.next_token()? {
            rate.count();
            // A model that was not taught to chat never writes EOS, but BOS before the next story.
            // llama2.c goes on there.
            if token == EOS || (self.endless && token == BOS) {
                break;
            }
            self.out.push(self.tokenizer.decode(self.turns.last(), token)?)?;
            self.turns.push(token);
            if self.endless {
                dropped += self.turns.drop_oldest()?;
            }
            cut = !self.turns.fit();
            if cut {
                break;
            }
        }
        self.out.finish()?;
        rate.report()?;
        self.note_dropped(dropped)?;
        if stopped() {
            self.turns.take_back_unanswered()?;
            note("the answer is stopped")?;
        } else if cut && self.endless {
            note(format!(
                "the answer is cut: with its message it fills the {} positions of the context",
                self.context
            ))?;
        }
        Ok(())
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

    fn note_dropped(&self, dropped: usize) -> anyhow::Result<()> {
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

/// Writes what the person asked for or must know beside the chat: `--quiet` does not hide it.
fn tell(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stderr(), "{text}")?)
}

/// Measures the speed of an answer.
struct Rate {
    /// Tokens that were read for it.
    prompt: usize,
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

    fn report(&self) -> anyhow::Result<()> {
        let Some(first) = self.first.filter(|_| self.more > 0) else { return Ok(()) };
        let rate = self.more as f64 / first.elapsed().as_secs_f64();
        let prompt = self.prompt as f64 / (first - self.start).as_secs_f64();
        note(format!("achieved tok/s: {rate:.1} (prompt: {prompt:.1})"))
    }
}

/// Writes a conversation to a new file, or to one that holds its beginning.
fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = || format!("/save {}", path.display());
    ensure!(!text.is_empty(), "{}: nothing has been said", file());
    match path.metadata() {
        Ok(there) if !there.is_file() => bail!("{} is there and not a regular file: give another name", path.display()),
        Ok(_) if !text.as_bytes().starts_with(&std::fs::read(path).with_context(file)?) => {
            bail!("{} is there and holds something else: give another name", path.display())
        }
        _ => {}
    }
    let mut temporary = tempfile::NamedTempFile::new_in(folder_of(path)).with_context(file)?;
    temporary.write_all(text.as_bytes()).with_context(file)?;
    if path.exists() { temporary.persist(path) } else { temporary.persist_noclobber(path) }.with_context(file)?;
    Ok(())
}
