//! Cuts a text into windows. A model reads each of them from an empty context and predicts the
//! token that follows each of its tokens.

use std::fmt;
use std::path::Path;

use infer_core::{Buffers, Engine, Kernels, Limits, Model, Pool, State, classify, forward};
use infer_text::{Special, TextTokenizer};
use serde::Serialize;

use crate::args::{Kv, WindowArgs};
use crate::input::read_text;
use crate::session::{BATCH, ModelFiles, Usage, buffers};

/// Separates the stories of a text.
const SEPARATOR: &str = "<|endoftext|>";

/// The windows of a text.
pub struct Windows {
    tokens: Vec<u32>,
    pub cut: Cut,
}

/// How a text is cut. Windows overlap where the stride is below their size.
#[derive(Clone, Copy, Serialize)]
pub struct Cut {
    /// Number of windows.
    pub windows: usize,
    /// Tokens that a window reads.
    pub window: usize,
    /// Tokens from the start of a window to the start of the next one.
    pub stride: usize,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut { windows, window, stride } = self;
        write!(f, "{windows} of {window} tokens")?;
        if stride < window { write!(f, ", {stride} apart") } else { Ok(()) }
    }
}

/// Tokens of a window that are read together.
pub struct Batch<'a> {
    tokens: &'a [u32],
    /// The token that follows each of them.
    targets: &'a [u32],
    /// Number of first targets that the window before has predicted.
    known: usize,
}

impl Windows {
    /// The windows of a text for a model with a context of `seq_len` positions. Tokens behind the
    /// last whole stride are left out.
    pub fn new(args: &WindowArgs, tokenizer: &TextTokenizer, text: &Path, seq_len: usize) -> anyhow::Result<Windows> {
        let window = args.window.unwrap_or(seq_len);
        if window == 0 || window > seq_len {
            return Err(Usage(format!("--window {window}: give 1 to {seq_len}, the model's context")).into());
        }
        let stride = args.stride.unwrap_or(window);
        if stride == 0 || stride > window {
            return Err(Usage(format!("--stride {stride}: give 1 to {window}, the tokens of a window")).into());
        }
        let tokens = read_stream(tokenizer, text)?;
        let Some(behind_the_first) = tokens.len().checked_sub(window + 1) else {
            let n = tokens.len();
            return Err(Usage(format!(
                "text {} has {n} tokens, and one window takes {}: give a longer text or a smaller --window",
                text.display(),
                window + 1
            ))
            .into());
        };
        let all = 1 + behind_the_first / stride;
        let windows = args.windows.map_or(all, |n| n.get().min(all));
        Ok(Windows { tokens, cut: Cut { windows, window, stride } })
    }

    /// The windows in the order of the text, each in batches.
    pub fn iter(&self) -> impl Iterator<Item = impl Iterator<Item = Batch<'_>>> {
        let Cut { windows, window, stride } = self.cut;
        (0..windows).map(move |i| {
            let known = if i == 0 { 0 } else { window - stride };
            let tokens = self.tokens[i * stride..][..window].chunks(BATCH);
            let targets = self.tokens[i * stride + 1..][..window].chunks(BATCH);
            tokens.zip(targets).enumerate().map(move |(i, (tokens, targets))| Batch {
                tokens,
                targets,
                known: known.saturating_sub(i * BATCH),
            })
        })
    }
}

impl Batch<'_> {
    /// The rows of the batch whose targets count, with these.
    pub fn targets(&self) -> impl Iterator<Item = (usize, u32)> {
        self.targets.iter().copied().enumerate().skip(self.known)
    }
}

/// A model that reads windows.
pub struct Reader<'a> {
    files: &'a ModelFiles,
    model: Model<'a>,
    state: State<'a>,
    engine: Engine<'a>,
}

impl<'a> Reader<'a> {
    /// The memory that [`new`](Reader::new) takes.
    pub fn buffers(files: &ModelFiles, cut: Cut, pool: &Pool, kv: Kv) -> anyhow::Result<Buffers> {
        let limits = Limits::new(cut.window).with_batch(BATCH.min(cut.window));
        buffers(files.model()?.config(), limits.with_threads(pool.threads().get()).with_kv(kv.into()))
    }

    pub fn new(files: &'a ModelFiles, buffers: &'a mut Buffers, pool: &'a Pool) -> anyhow::Result<Reader<'a>> {
        let (model, state, engine) = (files.model()?, buffers.state()?, Engine::new(Kernels::detect(), pool));
        Ok(Reader { files, model, state, engine })
    }

    /// Empties the context.
    pub fn start_window(&mut self) -> anyhow::Result<()> {
        Ok(self.state.rewind(0)?)
    }

    pub fn read(&mut self, batch: &Batch<'_>) -> anyhow::Result<()> {
        forward(&self.model, &mut self.state, &self.engine, batch.tokens).map_err(|e| self.files.explain(e))
    }

    /// The logits (vocab_size) behind a token of the batch that was read last.
    pub fn logits(&mut self, row: usize) -> anyhow::Result<&[f32]> {
        let logits = classify(&self.model, &mut self.state, &self.engine, row);
        logits.map(|logits| &*logits).map_err(|e| self.files.explain(e))
    }
}

/// Reads the tokens of all stories of a text, each with BOS in front if the model
/// has it.
fn read_stream(tokenizer: &TextTokenizer, path: &Path) -> anyhow::Result<Vec<u32>> {
    let text = read_text(path)?;
    let mut tokens = Vec::new();
    for story in text.split(SEPARATOR).map(str::trim).filter(|story| !story.is_empty()) {
        tokens.extend(tokenizer.bos());
        tokens.extend(tokenizer.encode(story, Special::AsText)?);
    }
    Ok(tokens)
}
