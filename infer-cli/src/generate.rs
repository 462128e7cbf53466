//! Tells a story.

use std::io::{self, Write};
use std::time::Instant;

use infer_core::{BOS, Limits, Runner};

use crate::args::GenerateArgs;
use crate::session::{BATCH, Buffers, ModelFiles, Session, Usage, budget, encode, start_pool};
use crate::text::TextOut;

/// Positions to run for, unless `-n` says otherwise: as in llama2.c.
const STEPS: usize = 256;

pub fn run(files: &ModelFiles, args: &GenerateArgs) -> anyhow::Result<()> {
    let tokenizer = files.tokenizer()?;
    let tokenizer = tokenizer.get();
    let config = *files.model()?.config();
    let steps = budget(args.steps.unwrap_or(STEPS), &config);
    let prompt = encode(&tokenizer, args.prompt.as_deref().unwrap_or(""))?;
    if prompt.len() > 1 && prompt.len() >= steps {
        let n = prompt.len();
        return Err(Usage(format!(
            "the prompt has {n} tokens and the run {steps} positions: shorten it, or raise -n (the model has {})",
            config.seq_len
        ))
        .into());
    }

    let pool = start_pool(args.threads, &config, 1)?;
    let mut buffers = Buffers::new(
        &config,
        Limits { max_seq: steps, batch: prompt.len().min(BATCH), threads: pool.threads().get(), kv: args.kv.into() },
    )?;
    let mut session = Session::new(files, &mut buffers, &pool, args.sampling)?;
    let mut out = TextOut::new(io::stdout().lock());
    for pair in prompt.windows(2) {
        out.push(tokenizer.decode(pair[0], pair[1])?)?;
    }
    let start = Instant::now();
    session.read(&prompt)?;
    let mut token = *prompt.last().unwrap_or(&BOS);
    let mut next = session.next_token(prompt.len())?;
    let prompt_time = start.elapsed();
    // BOS ends a story; it is not printed.
    while next != BOS {
        out.push(tokenizer.decode(token, next)?)?;
        token = next;
        if session.pos() >= steps {
            break;
        }
        session.read(&[token])?;
        next = session.next_token(1)?;
    }
    out.finish()?;

    let time = (start.elapsed() - prompt_time).as_secs_f64();
    let generated = session.pos() - prompt.len();
    if generated > 0 {
        let prompt_rate = prompt.len() as f64 / prompt_time.as_secs_f64();
        let prompt_note = if prompt.len() > 1 { format!(" (prompt: {prompt_rate:.1})") } else { String::new() };
        writeln!(io::stderr(), "achieved tok/s: {:.1}{prompt_note}", generated as f64 / time)?;
    }
    Ok(())
}
