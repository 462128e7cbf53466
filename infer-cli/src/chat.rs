//! Talks in turns, in the prompt format of Llama 2 Chat.

use std::io::{self, BufRead, StdoutLock, Write};

use infer_core::{EOS, Limits, Runner, Tokenizer};

use crate::args::GenerateArgs;
use crate::session::{BATCH, Buffers, ModelFiles, Session, Usage, budget, encode, start_pool};
use crate::text::TextOut;

pub fn run(files: &ModelFiles, args: &GenerateArgs) -> anyhow::Result<()> {
    let tokenizer = files.tokenizer()?;
    let tokenizer = tokenizer.get();
    let config = *files.model()?.config();
    let steps = budget(args.steps, &config);
    let pool = start_pool(args.threads)?;
    let mut buffers = Buffers::new(
        &config,
        Limits { max_seq: steps, batch: BATCH, threads: pool.threads().get(), kv: args.kv.into() },
    )?;
    let mut session = Session::new(files, &mut buffers, &pool, args.sampling)?;
    let mut out = TextOut::new(io::stdout().lock());

    let mut system = match &args.system_prompt {
        Some(system) => system.clone(),
        None => ask(&mut out, "Enter system prompt (optional): ")?.unwrap_or_default(),
    };
    let mut first = args.prompt.clone();
    while session.pos() < steps {
        let user = match first.take() {
            Some(user) => user,
            None => match ask(&mut out, "User: ")? {
                Some(user) => user,
                None => break, // end of input
            },
        };
        let prompt = encode(&tokenizer, &render(&system, &user))?;
        system.clear(); // it belongs to the first turn only
        let room = steps - session.pos();
        if prompt.len() > room {
            let n = prompt.len();
            let problem = format!(
                "the message has {n} tokens and {room} of {steps} positions are left: shorten it, or raise -n (the \
                 model has {})",
                config.seq_len
            );
            if session.pos() == 0 {
                return Err(Usage(problem).into());
            }
            // The conversation so far is not lost: a shorter message may fit.
            writeln!(io::stderr(), "\n{problem}")?;
            continue;
        }
        out.say("Assistant: ")?;
        answer(&mut session, &tokenizer, &prompt, steps, &mut out)?;
    }
    out.finish()?;
    Ok(())
}

/// One turn of the assistant, up to EOS or the end of the run.
fn answer(
    session: &mut Session<'_>,
    tokenizer: &Tokenizer<'_>,
    prompt: &[u32],
    steps: usize,
    out: &mut TextOut<StdoutLock<'_>>,
) -> anyhow::Result<()> {
    // llama2.c draws a random number at every position, also where the next token is known.
    prompt.iter().skip(1).for_each(|_| session.sampler.skip());
    session.read(prompt)?;
    let mut token = *prompt.last().unwrap_or(&EOS);
    let mut next = session.next_token(prompt.len())?;
    while next != EOS {
        out.push(tokenizer.decode(token, next)?)?;
        token = next;
        if session.pos() >= steps {
            return Ok(());
        }
        session.read(&[token])?;
        next = session.next_token(1)?;
    }
    if session.pos() < steps {
        session.read(&[EOS])?;
        session.sampler.skip();
    }
    out.finish()?;
    Ok(())
}

fn render(system: &str, user: &str) -> String {
    if system.is_empty() {
        format!("[INST] {user} [/INST]")
    } else {
        format!("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]")
    }
}

/// Asks for a line; `None` at the end of the input.
fn ask(out: &mut TextOut<StdoutLock<'_>>, question: &str) -> anyhow::Result<Option<String>> {
    out.say(question)?;
    let mut line = Vec::new();
    if io::stdin().lock().read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    let text = String::from_utf8(line)
        .map_err(|e| Usage(format!("the input \"{}\" is not valid UTF-8", String::from_utf8_lossy(e.as_bytes()))))?;
    Ok(Some(text))
}
