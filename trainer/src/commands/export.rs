//! `trainer export`: writes a model in the files of this or of other programs.

use std::path::PathBuf;

use crate::io::export::output::{Options, export};
use crate::io::export::tensor_type::TensorType;
use crate::io::weights::FileVersion;
use crate::report::output::result;
use crate::train::interrupt::Interrupt;

/// Writes a model as a model file, a GGUF file for llama.cpp, or a folder for transformers
#[derive(clap::Args)]
pub struct Args {
    /// A model file with its tokenizer beside it, a checkpoint's folder, or out_dir of a run for
    /// its best checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// What to write: OUT.bin with tokenizer.bin beside it, OUT.gguf, or a folder in the layout of
    /// Hugging Face
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Version of OUT.bin [default: 0, or 1 for models that version 0 cannot describe]
    #[arg(long, value_enum)]
    version: Option<FileVersion>,
    /// Type of the weights in OUT.gguf or a folder [default: f32]
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    tensor_type: Option<TensorType>,
}

/// Runs `trainer export`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::catch(false)?;
    let options = Options { version: args.version, tensor_type: args.tensor_type };
    let done = export(&args.model, &args.output, options, &|| interrupt.status().is_some());
    result(format!("{} to {}", interrupt.end(done)?, args.output.display()))
}
