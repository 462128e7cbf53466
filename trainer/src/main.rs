//! `trainer --export out/model.bin`: from text to a model file. Not built yet: this program says so and fails.

use std::path::PathBuf;

use clap::Parser;

/// Trains a small Llama-2 model and exports it as a llama2.c file. Not built yet.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where the trained model goes; its tokenizer.bin is written beside it
    #[arg(long, value_name = "MODEL.bin")]
    export: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let Args { export } = Args::parse();
    let goal = export.map(|path| format!(": {} was not written", path.display())).unwrap_or_default();
    anyhow::bail!("training is not built yet{goal}. Train with llama2.c's train.py; infer-cli runs what it exports.")
}
