//! Opened files, and how the command line's settings become a session.

use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use infer_core::format::Header;
use infer_core::{Buffers, Config, Error, Limits, Model, Pool, Sampler, Session, threads_for};
use infer_text::{TOKENIZER_BIN, TOKENIZER_JSON, TextTokenizer};

use crate::args::FullSampling;
use crate::note::note;
use crate::source::{Source, folder_of};

/// Prompts are read this many tokens at a time, so that the weights are read once for all of them.
pub const BATCH: usize = 256;

/// A mistake on the command line, as opposed to one in a file: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A model and its tokenizer.
pub struct ModelFiles {
    /// The folder of the model.
    folder: PathBuf,
    model: Source,
    tokenizer: Source,
}

impl ModelFiles {
    /// Opens a model, by default the embedded one, and its tokenizer: the given one, or
    /// [`find_tokenizer`].
    pub fn open(model: Option<&Path>, tokenizer: Option<&Path>) -> anyhow::Result<ModelFiles> {
        let path = model;
        let model = Source::model(path)?;
        Model::from_bytes(&model).with_context(|| model.name.clone())?; // before the tokenizer is asked for
        let found = match (path, tokenizer) {
            (Some(model), None) => Some(find_tokenizer(model)?),
            _ => None,
        };
        let tokenizer = Source::tokenizer(tokenizer.or(found.as_deref()))?;
        let folder = path.map_or(Path::new("."), folder_of).to_owned();
        Ok(ModelFiles { folder, model, tokenizer })
    }

    pub fn model(&self) -> anyhow::Result<Model<'_>> {
        Model::from_bytes(&self.model).with_context(|| self.model.name.clone())
    }

    /// The folder of the model.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The bytes of the tokenizer's file.
    pub fn tokenizer_bytes(&self) -> &[u8] {
        &self.tokenizer
    }

    /// The model's name in messages.
    pub fn model_name(&self) -> &str {
        &self.model.name
    }

    /// Adds the model's name to an error that the weights caused.
    pub fn explain(&self, e: Error) -> anyhow::Error {
        match e {
            Error::NotFinite { .. } => anyhow::Error::new(e).context(self.model.name.clone()),
            _ => e.into(),
        }
    }

    /// Whether the model is the one in this program.
    pub fn is_embedded(&self) -> bool {
        self.model.is_embedded()
    }

    /// Warns if somebody wrote to the model while it was in use.
    pub fn warn_if_changed(&self) -> io::Result<()> {
        if self.model.was_changed() {
            let name = &self.model.name;
            writeln!(
                io::stderr(),
                "warning: {name} was changed while it was in use: the result may be of neither version"
            )?;
        }
        Ok(())
    }

    /// FNV-1a (64 bits) of the model file.
    pub fn checksum(&self) -> u64 {
        infer_core::hash_bytes(infer_core::HASH_START, &self.model)
    }

    pub fn header(&self) -> anyhow::Result<Header> {
        Header::parse(&self.model).with_context(|| self.model.name.clone())
    }

    pub fn tokenizer(&self) -> anyhow::Result<TextTokenizer> {
        let header = self.header()?;
        let tokenizer = self.tokenizer.text_tokenizer(&header)?;
        let spare = tokenizer.spare_bytes();
        if spare > 0 {
            writeln!(
                io::stderr(),
                "warning: {} goes on for {spare} bytes after token {}, the model's last: it may belong to \
                 another model",
                self.tokenizer.name,
                header.config.vocab_size - 1
            )?;
        }
        Ok(tokenizer)
    }
}

/// Finds the tokenizer of this model: beside it, or, as llama2.c has it, in the current folder.
pub fn find_tokenizer(model: &Path) -> anyhow::Result<PathBuf> {
    for name in [TOKENIZER_BIN, TOKENIZER_JSON] {
        let beside = model.with_file_name(name);
        if beside.exists() {
            return Ok(beside);
        }
    }
    let (beside, here) = (model.with_file_name(TOKENIZER_BIN), Path::new(TOKENIZER_BIN));
    if here.exists() {
        note(format_args!("no {}: using {TOKENIZER_BIN} of the current folder", beside.display()))?;
        return Ok(here.into());
    }
    bail!(
        "there is neither {}, nor {TOKENIZER_JSON} beside it, nor {TOKENIZER_BIN} in the current folder: give the \
         model's tokenizer with -z",
        beside.display()
    )
}

/// The memory for running a model within these limits.
pub fn buffers(config: &Config, limits: Limits) -> anyhow::Result<Buffers> {
    Buffers::new(config, limits).map_err(|e| match (e, config.plan(limits)) {
        (Error::OutOfMemory { buffer, .. }, Ok(plan)) if buffer.starts_with("kv") => {
            anyhow::Error::new(e).context(format!("a KV cache of {} bytes: lower -n", plan.kv_bytes()))
        }
        _ => e.into(),
    })
}

/// A session with the sampling of the command line.
pub fn session<'a>(
    files: &'a ModelFiles,
    buffers: &'a mut Buffers,
    pool: &'a Pool,
    sampling: &FullSampling,
) -> anyhow::Result<Session<'a>> {
    let basic = sampling.basic;
    let mut sampler = Sampler::new(basic.temperature, basic.top_p, seed_or_clock(basic.seed))?;
    sampler.limit(sampling.top_k, sampling.min_p)?;
    let mut session = Session::new(files.model()?, buffers, pool, sampler)?;
    session.penalize_repeats(sampling.repeat_penalty, sampling.repeat_last_n);
    Ok(session)
}

/// Starts the threads that the command line asks for, by default [`threads_for`] the model.
pub fn start_pool(threads: Option<NonZeroUsize>, config: &Config, batch: usize) -> anyhow::Result<Pool> {
    let threads = threads.unwrap_or_else(|| threads_for(config, batch));
    Pool::new(threads).with_context(|| format!("starting {threads} threads: lower --threads"))
}

/// The seed of the command line, or one that differs from run to run if that is 0.
pub fn seed_or_clock(seed: u64) -> u64 {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64).max(1);
    if seed == 0 { clock() } else { seed }
}

/// The number of positions to run for: `-n`, or the whole context if that is 0 or exceeds it.
pub fn budget(steps: usize, config: &Config) -> usize {
    if steps == 0 { config.seq_len } else { steps.min(config.seq_len) }
}
