//! Runs a model with infer-core: one in training, a checkpoint, or a model file.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::{
    BOS, Buffers, Engine, Kernels, Limits, MappedModel, Model, ModelBytes, OwnedTokenizer, Perplexity, Sampler, Serial,
    Session, TextStream, Tokenizer, UNK,
};

use crate::io::checkpoint::{Checkpoint, Checkpoints};
use crate::io::files::{TOKENIZER, TOKENIZER_JSON, open_model};
use crate::io::weights::{FileVersion, Weights};

/// Tokens per forward pass, for prompts and for texts to evaluate.
const BATCH: usize = 64;

/// A model with its tokenizer.
pub struct Runnable {
    model: ModelFile,
    /// The tokenizer of the model.
    pub tokenizer: OwnedTokenizer<Vec<u8>>,
}

enum ModelFile {
    Mapped(MappedModel),
    Memory(ModelBytes),
}

impl ModelFile {
    fn model(&self) -> anyhow::Result<Model<'_>> {
        Ok(match self {
            ModelFile::Mapped(file) => file.model()?,
            ModelFile::Memory(bytes) => bytes.model()?,
        })
    }
}

impl Runnable {
    /// Opens a model file, a checkpoint, or the best checkpoint of a run's out_dir. A checkpoint
    /// brings its tokenizer; that of a model file is `tokenizer`, or tokenizer.bin beside the file.
    ///
    /// # Errors
    /// A file that is missing or damaged, and a tokenizer of fewer tokens than the model has.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> anyhow::Result<Runnable> {
        if let Some(mut checkpoint) = find_checkpoint(path)? {
            ensure!(
                !checkpoint.run.is_json,
                "{} has a {TOKENIZER_JSON}: export it, and run the model with infer-cli",
                path.display()
            );
            let weights = Weights::from_checkpoint(&mut checkpoint)?;
            return Runnable::new(&weights, checkpoint.tokenizer);
        }
        let model = open_model(path).with_context(|| format!("model {}", path.display()))?;
        let tokenizer = tokenizer.map_or_else(|| path.with_file_name(TOKENIZER), PathBuf::from);
        let in_tokenizer = || format!("tokenizer {}", tokenizer.display());
        let bytes = std::fs::read(&tokenizer).with_context(in_tokenizer)?;
        Runnable::from_file(ModelFile::Mapped(model), bytes).with_context(in_tokenizer)
    }

    /// Makes an f32 model of weights in training.
    ///
    /// # Errors
    /// A weight that is not finite, and a tokenizer of fewer tokens than the model has.
    pub fn new(weights: &Weights, tokenizer: Vec<u8>) -> anyhow::Result<Runnable> {
        let bytes = ModelBytes::copy(&weights.to_file(FileVersion::V1)?)?;
        Runnable::from_file(ModelFile::Memory(bytes), tokenizer)
    }

    fn from_file(model: ModelFile, tokenizer: Vec<u8>) -> anyhow::Result<Runnable> {
        let vocab_size = model.model()?.config().vocab_size;
        Ok(Runnable { model, tokenizer: OwnedTokenizer::new(tokenizer, vocab_size)? })
    }

    /// The model.
    ///
    /// # Errors
    /// The file is no longer the one that was opened.
    pub fn model(&self) -> anyhow::Result<Model<'_>> {
        self.model.model()
    }

    /// Tells a story that begins with `prompt` and takes at most `steps` positions.
    ///
    /// # Errors
    /// A prompt that leaves no position for the story.
    pub fn story(&self, prompt: &str, steps: usize, sampler: Sampler) -> anyhow::Result<String> {
        let model = self.model()?;
        let steps = steps.min(model.config().seq_len);
        let prompt = self.tokenizer.encode(prompt)?;
        ensure!(prompt.len() < steps, "the prompt has {} tokens of the {steps} positions", prompt.len());
        let tokens = generate(model, prompt, steps, sampler)?;
        let mut stream = TextStream::new();
        let mut text = String::new();
        for pair in tokens.windows(2) {
            text += &stream.push(self.tokenizer.decode(pair[0], pair[1])?);
        }
        text += stream.finish();
        // A carriage return would write over the line of the log that the story is in.
        text.retain(|c| !matches!(c, '\r' | '\x0b' | '\x0c'));
        Ok(text)
    }
}

/// Measures how well a model predicts `targets`, the tokens that follow `tokens` one position on.
/// Works on the calling thread: callers that have several sequences read them in parallel.
///
/// # Errors
/// A token that the model does not have, and more tokens than it has positions.
pub fn perplexity(
    model: &Model<'_>,
    tokenizer: &Tokenizer<'_>,
    tokens: &[u32],
    targets: &[u32],
) -> anyhow::Result<Perplexity> {
    let limits = Limits::new(tokens.len()).with_batch(BATCH.min(tokens.len()));
    let mut buffers = Buffers::new(model.config(), limits)?;
    let engine = Engine::new(Kernels::detect(), &Serial);
    let mut perplexity = Perplexity::default();
    let bytes_of = |token| if token == BOS { 0 } else { tokenizer.decode(UNK, token).map_or(0, <[u8]>::len) };
    perplexity.add_window(model, &mut buffers.state()?, &engine, tokens, targets, bytes_of)?;
    Ok(perplexity)
}

/// Appends tokens to the prompt until the model begins another story or `steps` positions are used.
/// Works on the calling thread: callers that want several stories tell them in parallel.
///
/// # Errors
/// A model whose logits are no numbers.
pub fn generate(model: Model<'_>, prompt: Vec<u32>, steps: usize, sampler: Sampler) -> anyhow::Result<Vec<u32>> {
    let mut buffers = Buffers::new(model.config(), Limits::new(steps).with_batch(BATCH))?;
    let mut session = Session::new(model, &mut buffers, &Serial, sampler)?;
    let mut tokens = prompt;
    while tokens.len() < steps {
        session.read(&tokens[session.pos()..])?;
        match session.next_token()? {
            BOS => break,
            next => tokens.push(next),
        }
    }
    Ok(tokens)
}

/// An answer in tokens.
pub struct Answer {
    /// All but the one that ends it.
    pub tokens: Vec<u32>,
    /// The model has ended it.
    pub stopped: bool,
}

/// Answers with the likeliest tokens after `question`, up to one of `stops` or to `steps`
/// positions.
///
/// # Errors
/// A question that takes all positions, and a model whose logits are no numbers.
pub fn answer(model: Model<'_>, question: &[u32], stops: &[u32], steps: usize) -> anyhow::Result<Answer> {
    ensure!(question.len() < steps, "the question has {} tokens of the {steps} positions", question.len());
    let mut buffers = Buffers::new(model.config(), Limits::new(steps).with_batch(BATCH))?;
    let mut session = Session::new(model, &mut buffers, &Serial, Sampler::new(0.0, 1.0, 1)?)?;
    let mut tokens = question.to_vec();
    while tokens.len() < steps {
        session.read(&tokens[session.pos()..])?;
        let next = session.next_token()?;
        if stops.contains(&next) {
            return Ok(Answer { tokens: tokens.split_off(question.len()), stopped: true });
        }
        tokens.push(next);
    }
    Ok(Answer { tokens: tokens.split_off(question.len()), stopped: false })
}

/// The checkpoint at this path: a step's folder, or the best one of a run's out_dir. `None` for
/// anything else.
///
/// # Errors
/// A damaged checkpoint, and a folder without one.
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
