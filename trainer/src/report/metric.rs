//! The measurements of a run, as metrics.jsonl has them: one JSON object per line.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// A line of metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metric {
    /// Means of the steps since the last line.
    Step {
        /// Last step of the mean.
        iter: u64,
        /// Training loss in nats per token.
        loss: f64,
        /// Learning rate of the last step.
        lr: f64,
        /// Milliseconds per step.
        ms: f64,
        /// Tokens per second.
        tok_per_s: f64,
        /// Share of the machine's peak that the model's operations reach.
        mfu: f64,
    },
    /// The result of an evaluation.
    Evaluation(Evaluation),
}

/// The result of an evaluation on fixed sequences of both splits. Losses are in nats per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done.
    pub iter: u64,
    /// Loss of the training split.
    pub train_loss: f64,
    /// Loss of the validation split.
    pub val_loss: f64,
    /// exp(val_loss): guessing evenly among this many tokens gives the same loss. Older runs have
    /// not recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_perplexity: Option<f64>,
    /// Validation loss in nats per byte, which does not depend on the vocabulary. Older runs have
    /// not recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_nats_per_byte: Option<f64>,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Seconds spent in steps so far.
    pub seconds: f64,
}

impl Metric {
    /// The step that the line belongs to.
    pub fn iter(&self) -> u64 {
        match self {
            Metric::Step { iter, .. } => *iter,
            Metric::Evaluation(evaluation) => evaluation.iter,
        }
    }
}

/// Reads all whole lines. The last line is not whole if the process was killed while writing it.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read_metrics(path: &Path) -> anyhow::Result<Vec<Metric>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// Sums over the steps since the last line of the log.
#[derive(Default)]
pub struct Window {
    loss: f64,
    time: Duration,
    steps: u32,
}

impl Window {
    /// Adds a step.
    pub fn add(&mut self, loss: f64, time: Duration) {
        self.loss += loss;
        self.time += time;
        self.steps += 1;
    }

    /// The mean loss and the mean time.
    pub fn means(self) -> (f64, Duration) {
        (self.loss / f64::from(self.steps), self.time / self.steps)
    }
}
