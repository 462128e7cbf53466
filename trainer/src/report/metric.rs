//! What a run measures, line by line, as it stands in metrics.jsonl.

use std::io;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// A line of metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metric {
    /// Means since the line before.
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
    /// Of both splits on fixed sequences.
    Evaluation(Evaluation),
}

/// Losses are in nats per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done.
    pub iter: u64,
    /// On the training split.
    pub train_loss: f64,
    /// On the validation split.
    pub val_loss: f64,
    /// exp(val_loss): among as many tokens a model without preferences would choose. Older runs
    /// have not noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_perplexity: Option<f64>,
    /// Independent of the vocabulary. Older runs have not noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_nats_per_byte: Option<f64>,
    /// Trained on so far.
    pub tokens: u64,
    /// Spent in steps so far.
    pub seconds: f64,
}

impl Metric {
    /// The step that it belongs to.
    pub fn iter(&self) -> u64 {
        match self {
            Metric::Step { iter, .. } => *iter,
            Metric::Evaluation(evaluation) => evaluation.iter,
        }
    }
}

/// All lines that are whole: the last one is not when the process was killed while writing it.
pub fn read_metrics(path: &Path) -> anyhow::Result<Vec<Metric>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}
