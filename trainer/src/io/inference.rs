//! Running a model with infer-core: one that was just trained, a checkpoint, or a model file.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::{
    BOS, Config, Engine, HotBuffers, IndexEntry, Kernels, KvBuffers, KvType, Limits, MappedModel, MergeSlot, Model,
    Plan, ProbIndex, Sampler, Serial, State, Tokenizer, classify, forward,
};

use crate::io::checkpoint::{Checkpoint, Checkpoints};

use crate::io::files::open_model;
use crate::io::weights::{FileVersion, Weights};

/// Tokens per forward pass where they are known in advance.
pub const BATCH: usize = 64;

/// A model with its tokenizer.
pub struct Runnable {
    model: Bytes,
    tokenizer: Vec<u8>,
    index: Vec<IndexEntry>,
}

enum Bytes {
    Mapped(MappedModel),
    Memory(Vec<u32>),
}

impl Runnable {
    /// Opens a model file, a checkpoint, or the best checkpoint of a run's out_dir. The tokenizer
    /// is that of the checkpoint, the given one, or tokenizer.bin beside the model file.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> anyhow::Result<Runnable> {
        if let Some(mut checkpoint) = find_checkpoint(path)? {
            let weights = Weights::from_checkpoint(&mut checkpoint)?;
            return Runnable::new(&weights, checkpoint.tokenizer);
        }
        let model = open_model(path).with_context(|| format!("model {}", path.display()))?;
        let tokenizer = tokenizer.map_or_else(|| path.with_file_name("tokenizer.bin"), PathBuf::from);
        let bytes = std::fs::read(&tokenizer).with_context(|| format!("tokenizer {}", tokenizer.display()))?;
        Runnable::from_bytes(Bytes::Mapped(model), bytes).with_context(|| format!("tokenizer {}", tokenizer.display()))
    }

    /// Weights in training, as an f32 model.
    pub fn new(weights: &Weights, tokenizer: Vec<u8>) -> anyhow::Result<Runnable> {
        Runnable::from_bytes(Bytes::Memory(aligned(&weights.to_file(FileVersion::V1)?)), tokenizer)
    }

    fn from_bytes(model: Bytes, tokenizer: Vec<u8>) -> anyhow::Result<Runnable> {
        let mut runnable = Runnable { model, tokenizer, index: Vec::new() };
        let vocab_size = runnable.model()?.config().vocab_size;
        runnable.index = tokenizer_index(&runnable.tokenizer, vocab_size)?;
        Ok(runnable)
    }

    /// The model.
    pub fn model(&self) -> anyhow::Result<Model<'_>> {
        Ok(match &self.model {
            Bytes::Mapped(file) => file.model()?,
            Bytes::Memory(words) => Model::from_bytes(bytemuck::cast_slice(words))?,
        })
    }

    /// The tokenizer of the model.
    pub fn tokenizer(&self) -> Tokenizer<'_> {
        Tokenizer::with_index(&self.tokenizer, &self.index)
    }

    /// Contents of tokenizer.bin.
    pub fn tokenizer_bytes(&self) -> &[u8] {
        &self.tokenizer
    }

    /// Tells a story that begins with `prompt` and takes at most `steps` positions.
    pub fn story(&self, prompt: &str, steps: usize, sampler: Sampler) -> anyhow::Result<String> {
        let (model, tokenizer) = (self.model()?, self.tokenizer());
        let steps = steps.min(model.config().seq_len);
        let prompt = encode(&tokenizer, prompt)?;
        ensure!(prompt.len() < steps, "the prompt has {} tokens of the {steps} positions", prompt.len());
        let tokens = generate(&model, prompt, steps, sampler)?;
        let mut text = Vec::new();
        for pair in tokens.windows(2) {
            text.extend(tokenizer.decode(pair[0], pair[1])?);
        }
        // A model must not drive the terminal.
        let printable = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        Ok(String::from_utf8_lossy(&text).chars().filter(printable).collect())
    }
}

/// Goes on behind the prompt until the model begins another story, or has used `steps` positions.
pub fn generate(model: &Model<'_>, prompt: Vec<u32>, steps: usize, mut sampler: Sampler) -> anyhow::Result<Vec<u32>> {
    let mut buffers = Buffers::new(model.config(), steps, BATCH)?;
    let mut state = buffers.state()?;
    let mut scratch = vec![ProbIndex::default(); model.config().vocab_size];
    let mut tokens = prompt;
    while tokens.len() < steps {
        let mut row = 0;
        for chunk in tokens[state.filled()..].chunks(BATCH) {
            forward(model, &mut state, &engine(), chunk)?;
            row = chunk.len() - 1;
        }
        let next = sampler.sample(classify(model, &mut state, &engine(), row)?, &mut scratch)?;
        if next == BOS {
            break;
        }
        tokens.push(next);
    }
    Ok(tokens)
}

/// infer-core on the calling thread: sequences are what runs in parallel here.
pub fn engine() -> Engine<'static> {
    Engine::new(Kernels::detect(), &Serial)
}

/// The memory of one sequence.
pub struct Buffers {
    plan: Plan,
    hot_f32: Vec<f32>,
    hot_i8: Vec<i8>,
    kv: Vec<f32>,
}

impl Buffers {
    /// Memory for `max_seq` positions, read up to `batch` at a time.
    pub fn new(config: &Config, max_seq: usize, batch: usize) -> anyhow::Result<Buffers> {
        let plan = config.plan(Limits { max_seq, batch, threads: 1, kv: KvType::F32 })?;
        let (hot_f32, hot_i8) = (vec![0.0; plan.hot_f32], vec![0; plan.hot_i8]);
        Ok(Buffers { plan, hot_f32, hot_i8, kv: vec![0.0; plan.kv_values] })
    }

    /// A state that uses this memory.
    pub fn state(&mut self) -> anyhow::Result<State<'_>> {
        let hot = HotBuffers { f32: &mut self.hot_f32, i8: &mut self.hot_i8 };
        Ok(State::new(&self.plan, hot, KvBuffers::F32(&mut self.kv))?)
    }
}

/// The tokens of a text, BOS first.
fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> anyhow::Result<Vec<u32>> {
    let most = Tokenizer::max_tokens(text.len());
    let mut tokens = vec![0; most];
    let n = tokenizer.encode(text, true, &mut vec![MergeSlot::EMPTY; most], &mut tokens)?;
    tokens.truncate(n);
    Ok(tokens)
}

/// Bytes of text that each token stands for. BOS stands for none.
pub fn token_lengths(tokenizer: &Tokenizer<'_>) -> anyhow::Result<Vec<usize>> {
    let length = |token| Ok(if token == BOS { 0 } else { tokenizer.decode(0, token)?.len() });
    (0..tokenizer.vocab_size() as u32).map(length).collect()
}

/// The index that a [`Tokenizer`] needs beside its bytes.
pub fn tokenizer_index(bytes: &[u8], vocab_size: usize) -> anyhow::Result<Vec<IndexEntry>> {
    let mut index = vec![IndexEntry::EMPTY; vocab_size];
    infer_core::build_index(bytes, vocab_size, &mut index)?;
    Ok(index)
}

/// The checkpoint at this path: a step's folder, or the best one of a run's out_dir. `None` for
/// anything else.
pub fn find_checkpoint(path: &Path) -> anyhow::Result<Option<Checkpoint>> {
    if Checkpoint::is_at(path) {
        return Checkpoint::read(path).map(Some);
    }
    if !path.is_dir() {
        return Ok(None);
    }
    let best = Checkpoints::open(path)?.read_best()?;
    ensure!(best.is_some(), "{} holds neither a checkpoint nor a run's checkpoints", path.display());
    Ok(best)
}

/// A copy of the bytes that is aligned as models must be.
pub fn aligned(bytes: &[u8]) -> Vec<u32> {
    let mut words = vec![0u32; bytes.len().div_ceil(4)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}
