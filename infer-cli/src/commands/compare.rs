//! Measures how far the predictions of one model are from those of another, such as an int8 model's
//! from those of the f32 model that it was made of.

use std::io::{self, Write};

use infer_core::{Perplexity, UNK};
use infer_text::TextTokenizer;
use serde::Serialize;

use crate::args::{CompareArgs, WindowArgs};
use crate::note::progress;
use crate::session::{BATCH, ModelFiles, Usage, start_pool};
use crate::windows::{Cut, Reader, Windows};

/// The likeliest tokens whose order is compared.
const TOP: usize = 10;

/// The fields of the JSON object.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    cut: Cut,
    tokens: usize,
    perplexity_a: f64,
    perplexity_b: f64,
    /// Kullback-Leibler divergence of B's probabilities from A's, in nats per token.
    kl_mean: f64,
    kl_median: f64,
    kl_90_percent: f64,
    kl_99_percent: f64,
    kl_max: f64,
    /// Share of the tokens where both models find the same token the likeliest.
    same_top: f64,
    /// Share of the tokens where the ten likeliest tokens are others, or in another order.
    top_10_changed: f64,
}

pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let windows = &args.windows;
    let a = ModelFiles::open(Some(&args.a), windows.tokenizer.as_deref())?;
    let b = ModelFiles::open(Some(&args.b), windows.tokenizer.as_deref())?;
    let report = measure(&a, &b, args);
    a.warn_if_changed()?;
    b.warn_if_changed()?;
    let report = report?;
    let mut out = io::stdout().lock();
    if windows.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    writeln!(out, "windows          {}", report.cut)?;
    writeln!(out, "predicted        {} tokens", report.tokens)?;
    writeln!(out, "perplexity of A  {:.5}", report.perplexity_a)?;
    writeln!(out, "perplexity of B  {:.5}", report.perplexity_b)?;
    writeln!(out, "KL divergence    {:.7} nats per token, of B from A", report.kl_mean)?;
    writeln!(out, "  half below     {:.7}", report.kl_median)?;
    writeln!(out, "  90% below      {:.7}", report.kl_90_percent)?;
    writeln!(out, "  99% below      {:.7}", report.kl_99_percent)?;
    writeln!(out, "  largest        {:.7}", report.kl_max)?;
    writeln!(out, "same top token   {:.3}% of tokens", 100.0 * report.same_top)?;
    writeln!(out, "top {TOP} changed   {:.3}% of tokens", 100.0 * report.top_10_changed)?;
    Ok(())
}

fn measure(a: &ModelFiles, b: &ModelFiles, args: &CompareArgs) -> anyhow::Result<Report> {
    let WindowArgs { threads, kv, .. } = args.windows;
    let config = *a.model()?.config();
    let seq_len = config.seq_len.min(b.model()?.config().seq_len);
    let tokenizer = one_vocabulary(a, b)?;
    let windows = Windows::new(&args.windows, &tokenizer, &args.text, seq_len)?;
    let pool = start_pool(threads, &config, BATCH)?;
    let mut buffers_a = Reader::buffers(a, windows.cut, &pool, kv)?;
    let mut buffers_b = Reader::buffers(b, windows.cut, &pool, kv)?;
    let mut a = Reader::new(a, &mut buffers_a, &pool)?;
    let mut b = Reader::new(b, &mut buffers_b, &pool)?;
    let progress = progress(windows.cut.windows as u64, "{bar:40} window {pos}/{len}, {msg}, {eta} left")?;
    let mut sum = Sum::default();
    for window in windows.iter() {
        a.start_window()?;
        b.start_window()?;
        for batch in window {
            a.read(&batch)?;
            b.read(&batch)?;
            for (row, target) in batch.targets() {
                sum.add(a.logits(row)?, b.logits(row)?, target);
            }
        }
        progress.set_message(format!("{:.5} nats", sum.kl.iter().sum::<f64>() / sum.kl.len() as f64));
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(sum.report(windows.cut))
}

/// The tokenizer of both models.
fn one_vocabulary(a: &ModelFiles, b: &ModelFiles) -> anyhow::Result<TextTokenizer> {
    let [have_a, have_b] = [a, b].map(|files| files.model().map(|model| model.config().vocab_size));
    let (have_a, have_b) = (have_a?, have_b?);
    let (name_a, name_b) = (a.model_name(), b.model_name());
    if have_a != have_b {
        return Err(Usage(format!(
            "{name_a} has {have_a} tokens and {name_b} has {have_b}: give two models of one vocabulary"
        ))
        .into());
    }
    let (a, b) = (a.tokenizer()?, b.tokenizer()?);
    for token in 0..have_a as u32 {
        let [piece_a, piece_b] = [&a, &b].map(|tokenizer| tokenizer.decode(UNK, token));
        if piece_a != piece_b {
            let [piece_a, piece_b] = [piece_a, piece_b].map(|piece| String::from_utf8_lossy(&piece).into_owned());
            return Err(Usage(format!(
                "token {token} is {piece_a:?} for {name_a} and {piece_b:?} for {name_b}: give two models of one \
                 vocabulary, or the tokenizer of both with -z"
            ))
            .into());
        }
    }
    Ok(a)
}

/// What was seen so far.
#[derive(Default)]
struct Sum {
    a: Perplexity,
    b: Perplexity,
    /// Divergence at each token, in nats.
    kl: Vec<f64>,
    same_top: usize,
    changed: usize,
}

impl Sum {
    /// Adds what both models predict for a place in the text, and the token that stands there.
    fn add(&mut self, a: &[f32], b: &[f32], target: u32) {
        let (norm_a, norm_b) = (Softmax::new(a), Softmax::new(b));
        self.a += norm_a.perplexity(a, target);
        self.b += norm_b.perplexity(b, target);
        // KL = sum of p_a · (ln p_a - ln p_b) with ln p = logit - max - ln_sum, whose last two
        // terms are the same for all tokens. Rounding may bring it below 0.
        let distance = |(&a, &b): (&f32, &f32)| f64::from(a - norm_a.max).exp() * (f64::from(a) - f64::from(b));
        let apart = a.iter().zip(b).map(distance).sum::<f64>() / norm_a.sum;
        self.kl.push((apart - (norm_a.ln_total() - norm_b.ln_total())).max(0.0));
        let (top_a, top_b) = (top(a), top(b));
        self.same_top += usize::from(top_a.first() == top_b.first());
        self.changed += usize::from(top_a != top_b);
    }

    fn report(mut self, cut: Cut) -> Report {
        let tokens = self.kl.len();
        let kl_mean = self.kl.iter().sum::<f64>() / tokens as f64;
        self.kl.sort_by(f64::total_cmp);
        // The smallest value that so many per cent of all do not exceed.
        let percentile = |percent: usize| self.kl[(tokens * percent).div_ceil(100).max(1) - 1];
        Report {
            cut,
            tokens,
            perplexity_a: self.a.perplexity(),
            perplexity_b: self.b.perplexity(),
            kl_mean,
            kl_median: percentile(50),
            kl_90_percent: percentile(90),
            kl_99_percent: percentile(99),
            kl_max: percentile(100),
            same_top: self.same_top as f64 / tokens as f64,
            top_10_changed: self.changed as f64 / tokens as f64,
        }
    }
}

/// The denominator of a softmax: e^max · sum.
struct Softmax {
    max: f32,
    sum: f64,
}

impl Softmax {
    fn new(logits: &[f32]) -> Softmax {
        let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
        Softmax { max, sum: logits.iter().map(|&x| f64::from(x - max).exp()).sum() }
    }

    fn ln_total(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    /// As `infer_core::nats`, without computing the sum again.
    fn perplexity(&self, logits: &[f32], target: u32) -> Perplexity {
        let nats = self.sum.ln() - f64::from(logits[target as usize] - self.max);
        Perplexity { nats, tokens: 1, bytes: 0 }
    }
}

/// The likeliest tokens, most likely first, of equals the lower one first.
fn top(logits: &[f32]) -> Vec<usize> {
    let mut top: Vec<usize> = Vec::with_capacity(TOP + 1);
    for (token, &logit) in logits.iter().enumerate() {
        if top.len() < TOP || top.last().is_some_and(|&last| logit > logits[last]) {
            top.insert(top.partition_point(|&other| logits[other] >= logit), token);
            top.truncate(TOP);
        }
    }
    top
}
