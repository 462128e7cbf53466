//! The command line: llama2.c's flags, each with a long name, and its older positional form.

mod measure;
mod suggest;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use infer_core::KvType;

use crate::input::read_prompt;
use crate::session::Usage;
pub use measure::{CompareArgs, PerplexityArgs, WindowArgs};
pub use values::PlanLimits;
use values::{at_least_1, min_p, penalty, plan, seed, steps, stop, temperature, threads, tokens, top_p};

/// Tells a story with a Llama-2 model file of llama2.c.
#[derive(Parser, Debug)]
#[command(name = "infer-cli", version, args_conflicts_with_subcommands = true, args_override_self = true)]
#[command(after_help = "Example: infer-cli -t 0.8 -i \"One day\"")]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Model file, version 0, 1 or 2 of llama2.c [default: the model that the program embeds]
    #[arg(value_name = "MODEL.bin")]
    pub model: Option<PathBuf>,

    #[command(flatten)]
    pub generate: GenerateArgs,

    /// Show the result alone: no rate, no notes, no progress; warnings and errors stay
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// llama2.c's older form: `infer-cli MODEL.bin [T] [N] [TEXT]`
    #[arg(value_name = "T", value_parser = temperature, conflicts_with = "temperature", hide = true)]
    positional_temperature: Option<f32>,
    #[arg(value_name = "N", value_parser = steps, conflicts_with = "steps", hide = true)]
    positional_steps: Option<usize>,
    #[arg(value_name = "TEXT", conflicts_with_all = ["prompt", "file"], hide = true)]
    positional_prompt: Option<String>,
}

/// How tokens are picked.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 always takes the most likely token, 1 samples the model's distribution
    #[arg(short, long, value_name = "T", default_value = "1.0", value_parser = temperature, allow_hyphen_values = true)]
    pub temperature: f32,

    /// Nucleus sampling: keep the likeliest tokens up to this probability mass; 0 and 1 turn it off
    #[arg(short = 'p', long, value_name = "P", default_value = "0.9", value_parser = top_p, allow_hyphen_values = true)]
    pub top_p: f32,

    /// Seed of the random numbers, a whole number of 32 bits, read as llama2.c reads it; 0 or
    /// absent takes the clock
    #[arg(short, long, value_name = "SEED", default_value = "0", value_parser = seed, allow_hyphen_values = true)]
    #[arg(hide_default_value = true)]
    pub seed: u64,
}

/// [`Sampling`], and what llama2.c does not have.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct FullSampling {
    #[command(flatten)]
    pub basic: Sampling,

    /// Keep the K likeliest tokens only; 0 keeps all
    #[arg(long, value_name = "K", default_value = "0", value_parser = tokens, allow_hyphen_values = true)]
    pub top_k: usize,

    /// Drop tokens below this share of the likeliest one's probability; 0 drops none
    #[arg(long, value_name = "P", default_value = "0", value_parser = min_p, allow_hyphen_values = true)]
    pub min_p: f32,

    /// Make tokens that were there lately less likely: 1 does nothing, 1.1 is mild
    #[arg(long, value_name = "X", default_value = "1", value_parser = penalty, allow_hyphen_values = true)]
    pub repeat_penalty: f32,

    /// Number of last tokens that the penalty looks at, prompt included
    #[arg(long, value_name = "N", default_value = "64", value_parser = tokens, allow_hyphen_values = true)]
    pub repeat_last_n: usize,
}

#[derive(clap::Args, Debug)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub sampling: FullSampling,

    /// Positions to run for, prompt included; 0 runs to the end of the model's context. In a chat:
    /// positions of the context [default: 256; in a chat and for the embedded model, all of the
    /// model's]
    #[arg(short = 'n', long, value_name = "N", value_parser = steps, allow_hyphen_values = true)]
    pub steps: Option<usize>,

    /// Beginning of the story, or the first message of a chat; - reads it from standard input
    #[arg(short = 'i', long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// Read the prompt from a file instead; its line ends become \n, and the last one is dropped
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,

    /// Names of special tokens in the prompt, such as <|im_start|>, are those tokens
    #[arg(long)]
    pub special: bool,

    /// End the story before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = stop, allow_hyphen_values = true)]
    pub stop: Vec<String>,

    /// Tokenizer file [default: tokenizer.bin beside the model or in this folder, or the embedded
    /// one]
    #[arg(short = 'z', long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// Threads [default: the physical cores, fewer for a small model]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,

    /// Type of the KV cache: int8 takes a quarter of the memory
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f32")]
    pub kv: Kv,

    /// What to do
    #[arg(short, long, value_name = "MODE", value_enum, default_value = "generate")]
    pub mode: Mode,

    /// System prompt of a chat; when absent, it is asked for
    #[arg(short = 'y', long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,

    /// Chat template: llama2, chatml, llama3, plain, or a Jinja file as Hugging Face has them
    /// [default: what the model's header names, or else llama2]
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<String>,

    /// Keep the chat in this file after every answer, and go on with it if it is there
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,

    /// Print one JSON object at the end instead of the text. In a chat: one per line, in and out,
    /// {"content": TEXT} and {"role": "assistant", "content": TEXT, "finish_reason": …} (see
    /// README)
    #[arg(long)]
    pub json: bool,
}

impl GenerateArgs {
    /// Replaces `-f FILE` and `-i -` by the text to be read from there.
    pub fn read_prompt(&mut self) -> anyhow::Result<()> {
        let from = self.file.as_deref().or(self.prompt.as_deref().filter(|text| *text == "-").map(Path::new));
        if let Some(from) = from {
            self.prompt = Some(read_prompt(from)?);
        }
        Ok(())
    }

    /// Refuses what only stories can have.
    pub fn check_chat(&self) -> Result<(), Usage> {
        let flag = if self.special { "--special" } else { "--stop" };
        if self.special || !self.stop.is_empty() {
            return Err(Usage(format!("{flag} is for stories: leave it out, or leave out -m chat")));
        }
        Ok(())
    }

    /// Refuses what only a chat can have.
    pub fn check_story(&self) -> Result<(), Usage> {
        let flag = if self.session.is_some() { "--session" } else { "--template" };
        if self.session.is_some() || self.template.is_some() {
            return Err(Usage(format!("{flag} is for chats: leave it out, or add -m chat")));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Tell a story
    Generate,
    /// Talk in turns
    Chat,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show a model's header, tensors, and the memory that running it takes
    Inspect {
        /// Model file, version 0, 1 or 2 of llama2.c [default: the embedded model]
        #[arg(value_name = "MODEL.bin")]
        model: Option<PathBuf>,
        /// Plan the memory for these limits, such as max_seq=256,kv=int8,prompt=128 [default: the
        /// model's seq_len, f32, prompts of 128 bytes]
        #[arg(long, value_name = "LIMITS", default_value = "", hide_default_value = true, value_parser = plan)]
        plan: PlanLimits,
        /// Print the plan alone, as a C header for infer_core.h
        #[arg(long)]
        c: bool,
        /// Print one JSON object
        #[arg(long, conflicts_with = "c")]
        json: bool,
    },
    /// Rewrite a model in int8, and bring its tokenizer.bin along
    Quantize {
        /// Model file of any version; also one whose groups cross rows
        #[arg(value_name = "IN.bin")]
        input: PathBuf,
        /// Version 2 file to be written
        #[arg(value_name = "OUT.bin")]
        output: PathBuf,
        /// The model's tokenizer [default: tokenizer.bin beside it]
        #[arg(short = 'z', long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
    },
    /// How well a model predicts a text: nats and perplexity per token, nats per byte
    #[command(override_usage = "infer-cli perplexity [OPTIONS] [MODEL.bin] <TEXT>")]
    Perplexity(PerplexityArgs),
    /// How far the predictions of model B are from those of model A, over a text
    Compare(CompareArgs),
    /// Measure speed on a model file, or on random weights of a well-known shape
    Bench(BenchArgs),
    /// Print the tokens of a text, to the byte as it is given, on one line; for a tokenizer.bin,
    /// BOS first
    Tokenize {
        /// Tokenizer file [default: the embedded one]
        #[arg(short = 'z', long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
        /// Text; standard input when absent
        #[arg(value_name = "TEXT", allow_hyphen_values = true)]
        text: Option<String>,
        /// Names of special tokens in the text, such as <|im_start|>, are those tokens
        #[arg(long)]
        special: bool,
        /// Print one JSON object, with the text of each token
        #[arg(long)]
        json: bool,
    },
    /// Let firmware on a serial line tell a story
    Serial(SerialArgs),
    /// Print a script that completes this program's commands and flags in a shell
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write manual pages, one per command
    Man {
        /// Folder for them
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(clap::Args, Debug)]
pub struct SerialArgs {
    /// Serial port, such as /dev/ttyACM0 or COM3, or tcp:HOST:PORT
    #[arg(value_name = "PORT")]
    pub port: String,

    #[command(flatten)]
    pub sampling: Sampling,

    /// Positions to run for, prompt included; 0 runs to the end of the firmware's KV cache
    #[arg(short = 'n', long, value_name = "N", default_value = "256", value_parser = steps, allow_hyphen_values = true)]
    pub steps: usize,

    /// Beginning of the story
    #[arg(short = 'i', long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    #[arg(hide_default_value = true)]
    pub prompt: String,

    /// Bits per second of the line
    #[arg(long, value_name = "N", default_value = "115200")]
    pub baud: u32,

    /// Seconds to wait for the firmware's next word
    #[arg(long, value_name = "N", default_value = "10")]
    pub timeout: NonZeroU32,

    /// Run this model here too, and compare tokens and logits
    #[arg(long, value_name = "MODEL.bin")]
    pub check: Option<PathBuf>,

    /// Tokenizer file for --check [default: tokenizer.bin beside the model]
    #[arg(short = 'z', long, value_name = "FILE", requires = "check")]
    pub tokenizer: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub struct BenchArgs {
    /// Model file [default: the embedded model, unless --shape or --weights asks for random
    /// weights]
    #[arg(value_name = "MODEL.bin", conflicts_with_all = ["shape", "weights"])]
    pub model: Option<PathBuf>,
    /// Random weights of this shape [default: 15M]
    #[arg(long, value_enum)]
    pub shape: Option<Shape>,
    /// Type of the random weights [default: int8]
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// Threads [default: the physical cores, fewer for a small model]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value = "128", value_parser = at_least_1, allow_hyphen_values = true)]
    pub tokens: NonZeroUsize,
    /// Tokens of the prompt [default: as many as --tokens]
    #[arg(long, value_name = "N", value_parser = at_least_1, allow_hyphen_values = true)]
    pub prompt: Option<NonZeroUsize>,
    /// Prompt tokens that are read at a time
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_1, allow_hyphen_values = true)]
    pub batch: NonZeroUsize,
    /// Times that everything is measured; medians are shown
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_1, allow_hyphen_values = true)]
    pub repeat: NonZeroUsize,
    /// Kernels by name, to compare them [default: the best]
    #[arg(long, value_name = "NAME")]
    pub kernels: Option<String>,
    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", value_enum, default_value = "f32")]
    pub kv: Kv,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Shapes of models that everybody measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// stories260K (in int8 with hidden_dim 192 instead of 172, for groups of 64)
    #[value(name = "260K")]
    S260K,
    /// stories15M
    #[value(name = "15M")]
    S15M,
    /// stories42M
    #[value(name = "42M")]
    S42M,
    /// stories110M
    #[value(name = "110M")]
    S110M,
    /// TinyLlama 1.1B
    #[value(name = "1B")]
    S1B,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    F32,
    Int8,
}

/// [`KvType`] as a flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    #[default]
    F32,
    Int8,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> KvType {
        match kv {
            Kv::F32 => KvType::F32,
            Kv::Int8 => KvType::Q8,
        }
    }
}

/// Parses the command line. `Err` is the exit code after help or a message has been printed.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Args, ExitCode> {
    let args: Vec<OsString> = args.collect();
    let parsed = Args::try_parse_from(&args);
    // A mistyped command is taken for a model, and what follows it for llama2.c's older form.
    let model = match &parsed {
        Ok(parsed) => parsed.model.clone(),
        Err(e) if e.use_stderr() => model_despite_errors(&args),
        Err(_) => None,
    };
    if let Some(meant) = model.as_deref().and_then(suggest::command) {
        let _ = writeln!(io::stderr(), "error: {meant}"); // nowhere left to report to
        return Err(ExitCode::from(2));
    }
    let mut parsed = parsed.map_err(|e| {
        if e.kind() == ErrorKind::InvalidUtf8 {
            let bad = args.iter().find(|arg| arg.to_str().is_none()).map(|arg| arg.to_string_lossy());
            eprintln!("error: argument \"{}\" is not valid UTF-8: give the text as UTF-8", bad.unwrap_or_default());
        } else {
            let _ = e.print(); // nowhere left to report to
        }
        ExitCode::from(if e.use_stderr() { 2 } else { 0 })
    })?;
    let generate = &mut parsed.generate;
    let temperature = &mut generate.sampling.basic.temperature;
    *temperature = parsed.positional_temperature.unwrap_or(*temperature);
    generate.steps = parsed.positional_steps.or(generate.steps);
    generate.prompt = parsed.positional_prompt.take().or(generate.prompt.take());
    Ok(parsed)
}

/// The model on a command line that cannot be parsed.
fn model_despite_errors(args: &[OsString]) -> Option<PathBuf> {
    let matches = Args::command().ignore_errors(true).try_get_matches_from(args).ok()?;
    matches.try_get_one::<PathBuf>("model").ok()?.cloned()
}
