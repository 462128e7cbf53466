//! `trainer import`: turns a model of another program into a model file.

use std::path::PathBuf;

use crate::io::import::convert::convert;
use crate::io::import::model::Hints;
use crate::io::weights::FileVersion;
use crate::report::output::result;
use crate::train::interrupt::Interrupt;

/// Turns a model of another program into a model file, with its vocabulary beside it
#[derive(clap::Args)]
pub struct Args {
    /// A folder of Hugging Face or of Meta, a GGUF file, a checkpoint of llama2.c (ckpt.pt) or
    /// another file of PyTorch in Meta's layout, a model.bin, or a vocabulary alone
    /// (tokenizer.model, tokenizer.json)
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The model file to write; tokenizer.bin or tokenizer.json for a vocabulary alone
    #[arg(value_name = "OUT.bin")]
    output: PathBuf,
    /// Version of the model file [default: 0, or 1 for models that version 0 cannot describe]
    #[arg(long, value_enum)]
    version: Option<FileVersion>,
    /// Most positions to keep of the model's context: buffers grow with it
    #[arg(long, value_name = "N")]
    max_seq_len: Option<usize>,
    /// The model's vocabulary, if it does not lie beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// What Meta's params.json says, for files without one
    #[arg(long, value_name = "FILE.json")]
    params: Option<PathBuf>,
    /// Number of attention heads, for files of PyTorch that nothing tells it of
    #[arg(long, value_name = "N")]
    n_heads: Option<usize>,
}

/// Runs `trainer import`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let hints = Hints {
        params: args.params.clone(),
        n_heads: args.n_heads,
        max_seq_len: args.max_seq_len,
        tokenizer: args.tokenizer.clone(),
    };
    let interrupt = Interrupt::catch(false)?;
    let done = convert(&args.input, &args.output, args.version, &hints, &|| interrupt.status().is_some());
    result(interrupt.end(done)?)
}
