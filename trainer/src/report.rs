//! Reports on a run: lines and a progress bar on the screen, and metrics.jsonl, TensorBoard's
//! events and the loss curve in out_dir.

pub mod bar;
pub mod metric;
pub mod output;
pub mod peak;
mod plot;
mod tensorboard;

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use indicatif::{HumanDuration, ProgressBar};
use infer_core::Config;

use crate::io::files::{CURVE, METRICS, write_whole};
use crate::report::metric::{Evaluation, Metric, read_metrics};
use crate::report::output::say;
use crate::report::tensorboard::EventFile;

/// The report of a run.
pub struct Report {
    bar: ProgressBar,
    out_dir: PathBuf,
    /// Files of the run. An evaluation on its own has none.
    files: Option<Files>,
    flops_per_token: f64,
    peak_flops: f64,
}

struct Files {
    metrics: File,
    events: EventFile,
}

impl Report {
    /// Reports to the screen alone.
    pub fn new(out_dir: &Path, config: &Config, iter: u64, max_iters: u64, peak_gflops: f64) -> Report {
        let bar = bar::new(max_iters, "{pos}/{len}").with_position(iter);
        bar.reset_eta();
        let (flops_per_token, peak_flops) = (flops_per_token(config), peak_gflops * 1e9);
        Report { bar, out_dir: out_dir.to_path_buf(), files: None, flops_per_token, peak_flops }
    }

    /// Opens the files of the run. The metrics up to step `iter` stay, later ones are dropped.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn open_files(&mut self, iter: u64) -> anyhow::Result<()> {
        let path = self.out_dir.join(METRICS);
        let kept = read_metrics(&path)?.into_iter().filter(|metric| iter > 0 && metric.iter() <= iter);
        let lines =
            kept.map(|metric| Ok(serde_json::to_string(&metric)? + "\n")).collect::<anyhow::Result<String>>()?;
        write_whole(&path, |out| Ok(out.write_all(lines.as_bytes())?))?;
        let metrics = OpenOptions::new().append(true).open(&path).with_context(|| path.display().to_string())?;
        let folder = self.out_dir.join("tensorboard");
        let events = EventFile::create(&folder).with_context(|| folder.display().to_string())?;
        self.files = Some(Files { metrics, events });
        Ok(())
    }

    /// Prints a line, above the bar where there is one.
    pub fn say(&self, line: impl Display) {
        self.bar.suspend(|| say(line));
    }

    /// Reports means of the steps up to step `iter`, which took `time` and had `tokens` tokens
    /// each.
    ///
    /// # Errors
    /// The metrics cannot be written.
    pub fn steps(&mut self, iter: u64, loss: f64, lr: f64, time: Duration, tokens: u64) -> anyhow::Result<()> {
        let tok_per_s = tokens as f64 / time.as_secs_f64();
        let mfu = tok_per_s * self.flops_per_token / self.peak_flops;
        let ms = time.as_secs_f64() * 1e3;
        self.say(format!(
            "iter {iter:6} | loss {loss:.4} | lr {lr:.3e} | {ms:.1} ms | {tok_per_s:.0} tok/s | mfu {:.1}%",
            100.0 * mfu
        ));
        let values = [("loss/step", loss), ("lr", lr), ("tok_per_s", tok_per_s), ("mfu", mfu)];
        self.write(&Metric::Step { iter, loss, lr, ms, tok_per_s, mfu }, &values)
    }

    /// Moves the bar.
    pub fn progress(&self, iter: u64, loss: f64, time: Duration, tokens: u64) {
        let tok_per_s = tokens as f64 / time.as_secs_f64();
        let mfu = 100.0 * tok_per_s * self.flops_per_token / self.peak_flops;
        self.bar.set_position(iter);
        let left = HumanDuration(self.bar.eta());
        self.bar.set_message(format!("{left:#} left, loss {loss:.3}, {tok_per_s:.0} tok/s, mfu {mfu:.1}%"));
    }

    /// Reports the result of an evaluation.
    ///
    /// # Errors
    /// The metrics cannot be written.
    pub fn evaluation(&mut self, result: Evaluation) -> anyhow::Result<()> {
        let Evaluation { iter, train_loss, val_loss, tokens, .. } = result;
        let (perplexity, per_byte) = (result.val_perplexity.unwrap_or(f64::NAN), result.val_nats_per_byte);
        let per_byte = per_byte.unwrap_or(f64::NAN);
        self.say(format!(
            "iter {iter:6} | train loss {train_loss:.4} | val loss {val_loss:.4} | perplexity {perplexity:.2} | \
             {per_byte:.4} nats/byte | {tokens} tokens seen"
        ));
        let values = [
            ("loss/train", train_loss),
            ("loss/val", val_loss),
            ("perplexity/val", perplexity),
            ("nats_per_byte/val", per_byte),
        ];
        self.write(&Metric::Evaluation(result), &values)
    }

    fn write(&mut self, metric: &Metric, values: &[(&str, f64)]) -> anyhow::Result<()> {
        let Some(files) = &mut self.files else { return Ok(()) };
        let line = serde_json::to_string(metric)? + "\n";
        let written =
            files.metrics.write_all(line.as_bytes()).and_then(|()| files.events.scalars(metric.iter(), values));
        written.with_context(|| format!("writing the metrics in {}", self.out_dir.display()))
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Removes the bar and draws the loss curve.
    ///
    /// # Errors
    /// The metrics cannot be read, or the curve cannot be written.
    pub fn finish(self) -> anyhow::Result<()> {
        self.clear();
        plot::loss_curve(&self.out_dir.join(CURVE), &read_metrics(&self.out_dir.join(METRICS))?)
    }
}

/// Floating-point operations of a forward and backward pass per token: 6 per parameter, and those
/// of the attention, as estimated in the appendix of PaLM (Chowdhery et al., 2022) and in llama2.c.
pub fn flops_per_token(c: &Config) -> f64 {
    let [dim, hidden_dim, n_layers, kv_dim, vocab_size, seq_len] =
        [c.dim, c.hidden_dim, c.n_layers, c.kv_dim(), c.vocab_size, c.seq_len].map(|n| n as f64);
    let per_layer = 2.0 * dim * dim + 2.0 * dim * kv_dim + 3.0 * dim * hidden_dim + 2.0 * dim;
    let parameters = vocab_size * dim + n_layers * per_layer + dim;
    6.0 * parameters + 12.0 * n_layers * dim * seq_len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_continue_from_the_step_that_a_run_resumes_from() {
        let evaluation = |iter| Evaluation {
            iter,
            train_loss: 2.0,
            val_loss: 2.1,
            val_perplexity: Some(8.2),
            val_nats_per_byte: Some(0.9),
            tokens: 100 * iter,
            seconds: 1.0,
        };
        let folder = tempfile::tempdir().unwrap();
        let config = crate::train::settings::tests::parse(&[]).unwrap().config();
        let report = |iter| {
            let mut report = Report::new(folder.path(), &config, iter, 20, 100.0);
            report.open_files(iter).unwrap();
            report
        };
        let mut first = report(0);
        for iter in [5, 10, 15] {
            first.steps(iter, 2.0, 1e-3, Duration::from_millis(10), 100).unwrap();
            first.evaluation(evaluation(iter)).unwrap();
        }
        first.files.unwrap().metrics.write_all(b"{\"iter\":17,\"lo").unwrap(); // killed
        let iters = || read_metrics(&folder.path().join(METRICS)).unwrap().iter().map(Metric::iter).collect::<Vec<_>>();
        let mut second = report(10);
        assert_eq!(iters(), [5, 5, 10, 10]);
        second.evaluation(evaluation(20)).unwrap();
        second.finish().unwrap();
        assert_eq!(iters(), [5, 5, 10, 10, 20]);
        let svg = std::fs::read_to_string(folder.path().join(CURVE)).unwrap();
        assert!(svg.contains("validation") && svg.contains("polyline"));
        report(0);
        assert_eq!(iters(), [0; 0]);
    }
}
