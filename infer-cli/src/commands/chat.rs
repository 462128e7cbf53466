//! Talks in turns, in the words of a chat template.

mod file;
mod input;
mod interrupt;
mod keep;
mod lines;
mod save;
mod talker;
mod turns;

use std::io::{self, StdoutLock, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::Limits;
use infer_text::Template;

use self::input::{Asked, Input, Quiet, normalize};
use self::keep::Keeper;
use self::save::save;
use self::talker::{Finish, Talker};
use crate::args::GenerateArgs;
use crate::note::note;
use crate::session::{BATCH, ModelFiles, Usage, budget, buffers, session, start_pool};
use crate::text::TextOut;

pub use self::interrupt::stop;

const HELP: &str = "\
/reset        forgets the conversation, but not the system prompt
/system TEXT  changes the system prompt; without TEXT, removes it
/save FILE    writes the conversation to a new file
/help         shows this
A text that begins with a slash is sent with two: //text
Ctrl-C stops an answer or clears the line, Ctrl-D ends the chat. A paste of several lines is one message.";

pub fn run(files: &ModelFiles, args: &GenerateArgs) -> anyhow::Result<()> {
    let tokenizer = files.tokenizer()?;
    let template = template(files, args.template.as_deref())?;
    let config = *files.model()?.config();
    let mut input = if args.json { Input::Lines } else { Input::open()? };
    let context = budget(args.steps.unwrap_or(0), &config);
    let pool = start_pool(args.threads, &config, 1)?;
    let mut buffers = buffers(
        &config,
        Limits::new(context).with_batch(BATCH.min(context)).with_threads(pool.threads().get()).with_kv(args.kv.into()),
    )?;
    let session = session(files, &mut buffers, &pool, &args.sampling)?;
    // A person or a program talks on and on. Input from elsewhere ends where -n says, as in
    // llama2.c.
    let endless = args.json || input.is_terminal() || args.steps.is_none_or(|n| n == 0);
    let mut talker = Talker::new(session, files, &tokenizer, &template, context, endless)?;
    let keeper = args.session.as_deref().map(|path| Keeper::new(path, files, &template, args.kv)).transpose()?;
    let resumed = match &keeper {
        Some(keeper) => keeper.resume(&mut talker, args.sampling.basic.seed == 0)?,
        None => false,
    };
    if args.json {
        return lines::run(talker, keeper.as_ref(), args, resumed);
    }
    interrupt::stops_answers(input.is_terminal());
    let mut chat = Chat { talker, keeper, out: TextOut::new(io::stdout().lock()), refused: 0 };
    chat.start(&mut input, args.system_prompt.as_deref(), resumed)?;
    chat.talk(&mut input, args.prompt.as_deref())?;
    if chat.refused > 0 && !input.is_terminal() {
        return Err(Usage(format!("lines refused: {}", chat.refused)).into());
    }
    Ok(())
}

/// The template of the command line, or else that of the model's header, or else Llama 2's.
fn template(files: &ModelFiles, wanted: Option<&str>) -> anyhow::Result<Template> {
    if let Some(wanted) = wanted {
        return Template::named(wanted).or_else(|e| match Path::new(wanted) {
            path if path.exists() || wanted.ends_with(".jinja") => Template::file(path),
            _ => Err(Usage(format!("--template: {e}")).into()),
        });
    }
    let of_header = Template::of(&files.header()?, files.folder()).with_context(|| files.model_name().to_owned())?;
    of_header.map_or_else(|| Template::named("llama2"), Ok)
}

/// A chat with a person, or with lines of text.
struct Chat<'a> {
    talker: Talker<'a>,
    keeper: Option<Keeper>,
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
    /// Sets the system prompt: the given one, or the one that is asked for. A conversation that
    /// goes on has one.
    fn start(&mut self, input: &mut Input, system: Option<&str>, resumed: bool) -> anyhow::Result<()> {
        let system = match system {
            Some(system) => normalize(system),
            None if resumed => return Ok(()),
            None => match input.ask(&mut self.out, "Enter system prompt (optional): ")? {
                Asked::Text(system) => system,
                Asked::Unusable(why) => return Err(Usage(why).into()),
                Asked::End => String::new(),
            },
        };
        self.talker.start(&system)
    }

    fn talk(&mut self, input: &mut Input, first: Option<&str>) -> anyhow::Result<()> {
        if let Some(first) = first {
            let first = normalize(first);
            if let Some(problem) = self.talker.too_long(&first)? {
                return Err(Usage(problem).into());
            }
            self.say(input, first)?;
        }
        while self.talker.endless || self.talker.turns.room() > 0 {
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
                Entry::Message(text) => match self.talker.too_long(text)? {
                    Some(problem) => self.refuse(&problem)?,
                    None => self.say(input, text.to_owned())?,
                },
                Entry::Reset => {
                    self.talker.turns.reset();
                    self.keep()?;
                    note("the conversation begins anew")?;
                }
                Entry::System(system) => self.change_system(system)?,
                Entry::Save(file) => match save(Path::new(file), &self.talker.turns.transcript()?) {
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
        note(format!("the chat ends: its {} positions (-n) are used", self.talker.context))
    }

    fn change_system(&mut self, system: &str) -> anyhow::Result<()> {
        let old = self.talker.turns.system().to_owned();
        match self.talker.turns.set_system(system) {
            Ok(Ok(())) => self.keep()?,
            Ok(Err(n)) => return self.refuse(&self.talker.no_room_beside(system, n)),
            Err(e) => return self.refuse(&format!("{e:#}")),
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

    /// One turn: a message that fits, and the answer.
    fn say(&mut self, input: &Input, text: String) -> anyhow::Result<()> {
        let _quiet = Quiet::new(input);
        let dropped = self.talker.begin(text)?;
        self.talker.note_dropped(dropped)?;
        self.out.say("Assistant: ")?;
        let answer = self.talker.answer(|bytes| Ok(self.out.push(bytes)?))?;
        self.out.finish()?;
        answer.rate.report()?;
        self.talker.note_dropped(answer.dropped)?;
        match answer.finish {
            Finish::Interrupted => note("the answer is stopped")?,
            Finish::Length if self.talker.endless => note(format!(
                "the answer is cut: with its message it fills the {} positions of the context",
                self.talker.context
            ))?,
            _ => {}
        }
        self.keep()
    }

    /// Writes the session file, if there is one.
    fn keep(&mut self) -> anyhow::Result<()> {
        self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.store(&mut self.talker))
    }
}

/// Writes what the person asked for or must know beside the chat: `--quiet` does not hide it.
fn tell(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stderr(), "{text}")?)
}
