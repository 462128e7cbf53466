//! `trainer sample`: tells stories with a checkpoint or a model file.

use std::path::PathBuf;

use infer_core::Sampler;

use crate::data::batches::mix;
use crate::io::inference::Runnable;
use crate::report::output::{Usage, result};

/// Tells stories with a checkpoint, the best checkpoint of a run, or a model file
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint, out_dir of a run, or model.bin
    model: PathBuf,
    /// Beginning of the story
    #[arg(long, default_value = "")]
    prompt: String,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Keep the likeliest tokens up to this probability mass
    #[arg(long, default_value_t = 0.9)]
    top_p: f32,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// Most positions of a story, prompt included
    #[arg(long, default_value_t = 256)]
    steps: usize,
    /// Number of stories
    #[arg(long, default_value_t = 1)]
    stories: u64,
    /// Tokenizer of a model file [default: tokenizer.bin beside it]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

/// Runs `trainer sample`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runnable = Runnable::open(&args.model, args.tokenizer.as_deref())?;
    for i in 0..args.stories {
        let sampler = Sampler::new(args.temperature, args.top_p, mix(&[args.seed, i]).max(1));
        let sampler = sampler.map_err(|e| Usage(e.to_string()))?;
        result(format!("{}\n", runnable.story(&args.prompt, args.steps, sampler)?))?;
    }
    Ok(())
}
