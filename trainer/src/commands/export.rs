//! `trainer export`: writes a checkpoint as a model file.

use std::path::PathBuf;

use anyhow::Context;

use crate::io::checkpoint::{RUN, TENSORS};
use crate::io::export::Target;
use crate::io::inference::find_checkpoint;
use crate::io::weights::{FileVersion, Weights};
use crate::report::output::result;

/// Writes a checkpoint as a model file that infer-cli, infer-core and llama2.c read, with
/// tokenizer.bin beside it
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a checkpoint, or out_dir of a run for its best one
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The model file to write, in a folder without another model's tokenizer.bin
    #[arg(value_name = "OUT.bin")]
    output: PathBuf,
    /// Version of the model file
    #[arg(long, value_enum, default_value = "0")]
    version: FileVersion,
}

/// Runs `trainer export`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut checkpoint = find_checkpoint(&args.checkpoint)?
        .with_context(|| format!("{} is no checkpoint and holds none", args.checkpoint.display()))?;
    let weights = Weights::from_checkpoint(&mut checkpoint)?;
    let target = Target { path: args.output.clone(), version: args.version, advice: "give another OUT.bin" };
    let inputs = [TENSORS, RUN].map(|name| checkpoint.path.join(name));
    target.check(&weights.config, &[&inputs[0], &inputs[1]])?;
    target.write(&weights, &checkpoint.tokenizer)?;
    result(format!("{} (step {}) to {}", checkpoint.path.display(), checkpoint.run.iter, args.output.display()))
}
