//! `trainer eval`: how well a checkpoint or a model file predicts the validation split, by infer-core.

use std::path::PathBuf;

use anyhow::ensure;
use infer_core::{BOS, classify, forward};
use rayon::prelude::*;

use crate::batches::Batches;
use crate::inference::{BATCH, Buffers, Runnable, engine};
use crate::shards::Shards;
use crate::tokenizer::TokenizerFile;

/// Loss of a checkpoint or a model file on the validation split
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint, out_dir of a run (for its best checkpoint), or model.bin
    model: PathBuf,
    /// Folder of token shards
    #[arg(long, default_value = "data")]
    data: PathBuf,
    /// Tokens per sequence [default: the model's context]
    #[arg(long)]
    window: Option<usize>,
    /// Tokenizer of a model file [default: tokenizer.bin beside it]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let runnable = Runnable::open(&args.model, args.tokenizer.as_deref())?;
    let own = TokenizerFile::from_bytes(&args.model, runnable.tokenizer_bytes().to_vec())?;
    let shards = Shards::open(&args.data, Some(&own))?;
    let (model, tokenizer) = (runnable.model()?, runnable.tokenizer());
    let config = model.config();
    ensure!(
        shards.vocab_size() == config.vocab_size && own.means_the_same(shards.tokenizer()),
        "{} and the shards in {} have different vocabularies ({} and {} tokens): pretokenize with the model's",
        args.model.display(),
        args.data.display(),
        config.vocab_size,
        shards.vocab_size()
    );
    let window = args.window.unwrap_or(config.seq_len);
    ensure!((1..=config.seq_len).contains(&window), "window is {window}: it must be from 1 to {}", config.seq_len);
    let batches = Batches::new(vec![shards.valid()], window, 0, "--window")?;
    let n = batches.sequences() as usize;

    let sums = (0..n).into_par_iter().map(|i| {
        let Some(batch) = batches.fixed(i, n, 1)? else { return Ok((0.0, 0)) };
        let mut buffers = Buffers::new(config, window, BATCH.min(window))?;
        let mut state = buffers.state()?;
        let mut sum = (0.0, 0);
        for (tokens, targets) in batch.x.chunks(BATCH).zip(batch.y.chunks(BATCH)) {
            let pos = state.filled();
            forward(&model, &mut state, &engine(), tokens, pos)?;
            for (row, &target) in targets.iter().enumerate() {
                sum.0 += surprise(classify(&model, &mut state, &engine(), row)?, target);
                sum.1 += if target == BOS { 0 } else { tokenizer.decode(0, target)?.len() };
            }
        }
        Ok(sum)
    });
    let sums = sums.collect::<anyhow::Result<Vec<(f64, usize)>>>()?;
    // In order, so that the sum does not depend on the threads.
    let (nats, bytes) = sums.iter().fold((0.0, 0), |(nats, bytes), sum| (nats + sum.0, bytes + sum.1));
    println!("predicted        {} tokens, {bytes} bytes", n * window);
    println!("nats per token   {:.7}", nats / (n * window) as f64);
    println!("nats per byte    {:.7}", nats / bytes as f64);
    Ok(())
}

/// -ln of the probability that softmax gives to `token`.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}
