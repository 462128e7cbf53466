//! Tells a story.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use infer_core::{Limits, Session};
use infer_text::{Special, TextTokenizer};
use serde::Serialize;

use crate::args::GenerateArgs;
use crate::note::note;
use crate::session::{BATCH, ModelFiles, Usage, budget, buffers, seed_or_clock, session, start_pool};
use crate::stop::Stops;
use crate::text::TextOut;

/// The JSON object.
#[derive(Serialize)]
struct Report {
    seed: u64,
    text: String,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    ended_by: End,
    tokens_per_second: Option<f64>,
    prompt_tokens_per_second: f64,
}

/// Why a story ended.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum End {
    /// The model began another story.
    Bos,
    /// The model ended its text: only one whose header names the tokens for that.
    Eos,
    /// All positions are used.
    Steps,
    /// A text of `--stop`.
    Stop,
}

struct Told {
    /// The tokens that follow the prompt.
    tokens: Vec<u32>,
    end: End,
    prompt_time: Duration,
    time: Duration,
}

/// Positions to run for with a model file, unless `-n` says otherwise: as in llama2.c. The embedded
/// model tells whole stories.
const STEPS: usize = 256;

pub fn run(files: &ModelFiles, args: &GenerateArgs) -> anyhow::Result<()> {
    let tokenizer = files.tokenizer()?;
    let config = *files.model()?.config();
    let steps = budget(args.steps.unwrap_or(if files.is_embedded() { 0 } else { STEPS }), &config);
    let special = if args.special { Special::Match } else { Special::AsText };
    let prompt = [tokenizer.bos(), &tokenizer.encode(args.prompt.as_deref().unwrap_or(""), special)?].concat();
    if prompt.is_empty() {
        return Err(Usage("the model has no token that begins a text: give its beginning with -i".into()).into());
    }
    if prompt.len() > steps {
        let n = prompt.len();
        return Err(Usage(format!(
            "the prompt has {n} tokens and the run {steps} positions: shorten it, or raise -n (the model has {})",
            config.seq_len
        ))
        .into());
    }

    let pool = start_pool(args.threads, &config, 1)?;
    let mut buffers = buffers(
        &config,
        Limits::new(steps)
            .with_batch(prompt.len().min(BATCH))
            .with_threads(pool.threads().get())
            .with_kv(args.kv.into()),
    )?;
    let mut sampling = args.sampling;
    sampling.basic.seed = seed_or_clock(sampling.basic.seed);
    let mut session = session(files, &mut buffers, &pool, &sampling)?;
    let mut stops = Stops::new(&args.stop);
    if !args.json {
        let mut out = TextOut::new(io::stdout().lock());
        let told = tell(files, &mut session, &tokenizer, &prompt, steps, &mut stops, &mut out)?;
        return show_rate(&prompt, &told);
    }
    let mut text = Vec::new();
    let told = tell(files, &mut session, &tokenizer, &prompt, steps, &mut stops, &mut TextOut::new(&mut text))?;
    text.pop(); // the end of the line
    let (prompt_rate, rate) = rates(&prompt, &told);
    let report = Report {
        seed: sampling.basic.seed,
        text: String::from_utf8(text)?,
        prompt_tokens: prompt.len(),
        tokens: [prompt, told.tokens].concat(),
        ended_by: told.end,
        tokens_per_second: rate,
        prompt_tokens_per_second: prompt_rate,
    };
    Ok(writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?)
}

/// Tells the story, prompt first, and ends the line.
fn tell(
    files: &ModelFiles,
    session: &mut Session<'_>,
    tokenizer: &TextTokenizer,
    prompt: &[u32],
    steps: usize,
    stops: &mut Stops<'_>,
    out: &mut TextOut<impl Write>,
) -> anyhow::Result<Told> {
    let header = files.header()?;
    if tokenizer.bos().is_empty() {
        out.push(&tokenizer.decode(prompt[0], prompt[0]))?;
    }
    for pair in prompt.windows(2) {
        out.push(&tokenizer.decode(pair[0], pair[1]))?;
    }
    let start = Instant::now();
    session.read(prompt)?;
    let mut token = prompt[prompt.len() - 1];
    let mut next = session.next_token().map_err(|e| files.explain(e))?;
    let prompt_time = start.elapsed();
    let mut tokens = Vec::new();
    let end = loop {
        // What ends a story is not printed.
        if header.ends(next) {
            break if tokenizer.bos().contains(&next) { End::Bos } else { End::Eos };
        }
        tokens.push(next);
        let (text, stopped) = stops.push(&tokenizer.decode(token, next));
        out.push(&text)?;
        if stopped {
            break End::Stop;
        }
        token = next;
        if session.pos() >= steps {
            break End::Steps;
        }
        session.read(&[token])?;
        next = session.next_token().map_err(|e| files.explain(e))?;
    };
    out.push(&stops.rest())?;
    out.finish()?;
    Ok(Told { tokens, end, prompt_time, time: start.elapsed() - prompt_time })
}

/// Tokens per second of the prompt and of the story; the story's first token belongs to the prompt.
fn rates(prompt: &[u32], told: &Told) -> (f64, Option<f64>) {
    let positions = (told.tokens.len() + usize::from(matches!(told.end, End::Bos | End::Eos))).saturating_sub(1);
    let rate = (positions > 0).then(|| positions as f64 / told.time.as_secs_f64());
    (prompt.len() as f64 / told.prompt_time.as_secs_f64(), rate)
}

fn show_rate(prompt: &[u32], told: &Told) -> anyhow::Result<()> {
    let (prompt_rate, rate) = rates(prompt, told);
    let prompt_note = if prompt.len() > 1 { format!(" (prompt: {prompt_rate:.1})") } else { String::new() };
    rate.map_or(Ok(()), |rate| note(format_args!("achieved tok/s: {rate:.1}{prompt_note}")))
}
