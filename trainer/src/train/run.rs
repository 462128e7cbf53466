//! A training run: steps, evaluations, checkpoints, and the export at the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dfdx::prelude::{Cache, Cpu};
use indicatif::HumanDuration;
use infer_core::format::{Header, Version};

use crate::data::batches::{Batch, mix};
use crate::io::checkpoint::{Checkpoints, Order, Run};
use crate::io::files::{SETTINGS, lock, write_whole};
use crate::io::foreign::Parts;
use crate::io::loss_scale::LossScale;
use crate::io::model_file::Target;
use crate::io::vocabulary::Vocabulary;
use crate::io::weights::{FileVersion, Weights};
use crate::model::{self, AdamW, Adapters, Backend, Dtype, IGNORED, Llama, Options, clip_gradients};
use crate::report::Report;
use crate::report::metric::{Evaluation, Window};
use crate::report::output::note;
use crate::report::peak;
use crate::train::corpus::{Corpus, Sequences, for_model};
use crate::train::interrupt::Interrupt;
use crate::train::memory;
use crate::train::saved;
use crate::train::schedule::learning_rate;
use crate::train::settings::{Device, InitFrom, Settings};
use crate::train::start::{Start, describe, describe_trained};

/// Trains on the device that the settings name.
///
/// # Errors
/// Settings, files and weights that do not fit together, found before the first step; a training
/// that diverges; files that cannot be written.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    match &settings.device {
        Device::Cpu => {
            let device = Cpu::default();
            device.enable_cache(); // each step reuses the memory of the gradients of the last
            run_on(settings, device)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => run_on(settings, model::open_gpu(*number)?),
        // `Settings::check` refuses these; a caller of the library may not have called it.
        other => bail!("device is {:?}: not in this program", String::from(other.clone())),
    }
}

fn run_on<D: Backend>(settings: &Settings, device: D) -> anyhow::Result<()> {
    let _lock = if settings.eval_only {
        None
    } else {
        Some(lock(&settings.out_dir, "another trainer", "name another --out-dir")?)
    };
    let start = Start::find(settings)?;
    let config = start.config(settings)?;
    memory::check(settings, &config)?;
    if !settings.eval_only {
        target(settings, &Header::new(Version::V1, config)).check(&config, &inputs(settings))?;
    }
    let data = Corpus::prepare(settings, &start)?;
    let vocab_size = match start {
        Start::Scratch => data.vocab_size(),
        _ => config.vocab_size, // a vocabulary may leave tokens of the model unused
    };
    let settings = &Settings { vocab_size: Some(vocab_size), ..settings.clone() };
    memory::check(settings, &start.config(settings)?)?; // again, now that the vocabulary is known
    let mut training = Training::new(settings, device, &data, start)?;
    if settings.eval_only {
        let loss = training.evaluate()?;
        training.warn_if_worse_than_guessing(loss);
        return Ok(());
    }
    training.begin()?;
    training.train()?;
    training.finish()
}

/// The place for the trained model of this header.
fn target(settings: &Settings, header: &Header) -> Target<'static> {
    let advice = match settings.export {
        Some(_) => "name another --export",
        None => "name the model with --export, or another --out-dir",
    };
    let version = settings.export_version.unwrap_or(FileVersion::least(header));
    Target { path: settings.export_path(), version, advice }
}

/// The files that a run reads.
fn inputs(settings: &Settings) -> Vec<&Path> {
    let Settings { data, valid, chats, chats_valid, tokenizer, teacher, .. } = settings;
    let given = [data, valid, chats, chats_valid, tokenizer, teacher].into_iter().flatten().map(PathBuf::as_path);
    let model = match &settings.init_from {
        InitFrom::Model(path) => Some(Path::new(path)),
        InitFrom::Scratch | InitFrom::Resume => None,
    };
    given.chain(model).collect()
}

/// A run in progress.
struct Training<'a, D: Backend> {
    settings: &'a Settings,
    data: &'a Corpus,
    train: Sequences<'a>,
    valid: Sequences<'a>,
    model: Llama<D>,
    optimizer: AdamW<D>,
    teacher: Option<Llama<D>>,
    run: Run,
    checkpoints: Checkpoints,
    report: Report,
    interrupt: Interrupt,
    /// Bytes of text of each token.
    token_lengths: Vec<usize>,
}

impl<'a, D: Backend> Training<'a, D> {
    fn new(settings: &'a Settings, device: D, data: &'a Corpus, start: Start) -> anyhow::Result<Self> {
        let s = settings;
        let (train, valid) = (data.train(s)?, data.valid(s)?);
        let config = start.config(s)?;
        let header = data.header(&start.header(s)?.unwrap_or(Header::new(Version::V1, config)))?;
        let order = Order {
            seed: s.seed,
            batch_size: s.batch_size,
            gradient_accumulation_steps: s.gradient_accumulation_steps,
            length: s.max_seq_len,
            epoch: train.number(),
            chats: train.checksum(),
        };
        let mut run = Run::new(&config, order);
        run.template = data.template().map_or_else(|| start.template(), |source| Ok(Some(source.into())))?;
        if let Start::Resume(checkpoint) = &start {
            let template = run.template.take();
            run = checkpoint.run.clone();
            (run.order, run.template) = (order, template);
            if checkpoint.run.order != order {
                note(format!(
                    "note: the run goes on from {}, but not as it would have, since settings have changed: {}",
                    checkpoint.path.display(),
                    checkpoint.run.order.changes(&order)
                ));
            }
        }
        run = run.with_header(&header);
        run.is_json = matches!(data.vocabulary(), Vocabulary::Json(_));
        let (mut model, optimizer) =
            start.into_model(config, &device, s, s.lora().map(|lora| lora.with_ends(data.stops())))?;
        (model.matmul_precision, model.dtype, model.recompute) = (s.matmul_precision, s.dtype.format(), s.recompute);
        if model.dtype == Dtype::Float16 {
            run.loss_scale.get_or_insert_default();
        }
        let teacher = data.teacher().map(|teacher| Llama::from_model(&teacher.model()?, &device)).transpose()?;
        let checkpoints = Checkpoints::open(&s.out_dir)?;
        let token_lengths = data.token_lengths(config.vocab_size)?;
        let interrupt = Interrupt::default();
        let (peak, how) = match s.peak_gflops {
            Some(peak) => (peak, "given"),
            None => (peak::measure(), "measured in f32"),
        };
        let report = Report::new(&s.out_dir, &config, run.iter, s.max_iters, peak);
        report.say(format!(
            "{} parameters: {}{}\nmatrix products in {}\n\
             {} sequences of {} tokens to train on{}, {} to validate on; {} tokens per step\n\
             mfu is relative to {peak:.0} GFLOP/s, {how}",
            model.parameter_count(),
            describe(&config),
            describe_trained(&model),
            match s.device {
                Device::Cpu => model.dtype.on_cpu(s.matmul_precision),
                _ => model.dtype.on_gpu(s.matmul_precision),
            },
            train.number(),
            s.max_seq_len,
            train.describe_fullness(),
            valid.number(),
            s.tokens_per_iter(),
        ));
        Ok(Training {
            settings,
            data,
            train,
            valid,
            model,
            optimizer,
            teacher,
            run,
            checkpoints,
            report,
            interrupt,
            token_lengths,
        })
    }

    /// Opens the run's files and writes settings.toml, from which a run resumes.
    fn begin(&mut self) -> anyhow::Result<()> {
        let header = self.run.header();
        let target = target(self.settings, &header);
        target.version.header(&header).with_context(|| target.path.display().to_string())?;
        target.check_beside(&header, Some(&self.data.vocabulary()), self.run.template.as_deref())?;
        self.interrupt = Interrupt::catch()?;
        self.checkpoints.begin(self.run.iter, self.settings.always_save_checkpoint)?;
        if let (Some(Adapters { lora, .. }), None) = (&self.model.adapters, self.run.lora) {
            self.run.lora = Some((*lora, self.checkpoints.save_base(&saved::base(&self.model))?));
        }
        self.report.open_files(self.run.iter)?;
        let c = self.model.config;
        let settings = Settings {
            // A search could find other shards next time, so the folder itself is written down.
            data: self.data.folder(),
            valid: None,
            separator: None,
            tokenizer: self.settings.tokenizer.as_ref().map(|_| self.data.tokenizer_path().into()),
            // The checkpoint has it.
            template: None,
            dim: c.dim,
            hidden_dim: Some(c.hidden_dim),
            n_layers: c.n_layers,
            n_heads: c.n_heads,
            n_kv_heads: Some(c.n_kv_heads),
            vocab_size: Some(c.vocab_size),
            init_from: InitFrom::Resume,
            eval_only: false,
            ..self.settings.clone()
        };
        let text = toml::to_string(&settings)?;
        write_whole(&self.settings.out_dir.join(SETTINGS), |out| Ok(out.write_all(text.as_bytes())?))
    }

    fn train(&mut self) -> anyhow::Result<()> {
        let s = self.settings;
        let mut window = Window::default();
        if self.run.iter > s.max_iters {
            self.report
                .say(format!("nothing to train: the run is at step {}, max_iters is {}", self.run.iter, s.max_iters));
        }
        while self.run.iter < s.max_iters {
            if self.run.iter.is_multiple_of(s.eval_interval) {
                self.evaluate_and_save()?;
            }
            let start = Instant::now();
            let loss = self.step()?;
            let time = start.elapsed();
            self.run.seconds += time.as_secs_f64();
            window.add(loss, time);
            self.report.progress(self.run.iter, loss, time, s.tokens_per_iter());
            if self.run.iter.is_multiple_of(s.log_interval) {
                let (loss, time) = std::mem::take(&mut window).means();
                let lr = learning_rate(s, self.run.iter - 1);
                self.report.steps(self.run.iter, loss, lr, time, s.tokens_per_iter())?;
            }
            if let Some(status) = self.interrupt.status() {
                self.save()?;
                self.report.clear();
                self.report.say(format!(
                    "interrupted after step {}, which is saved: go on with --config {} --init-from resume",
                    self.run.iter,
                    s.out_dir.join(SETTINGS).display()
                ));
                std::process::exit(status);
            }
        }
        self.evaluate_and_save()
    }

    /// Updates the weights once. Returns the loss before the update.
    fn step(&mut self) -> anyhow::Result<f64> {
        let s = self.settings;
        let mut gradients = self.model.zero_gradients()?;
        self.model.loss_scale = self.loss_scale().map_or(1.0, |scale| scale.scale);
        let mut loss = 0.0;
        let mut batches = Vec::new();
        for _ in 0..s.gradient_accumulation_steps {
            batches.push(self.train.training(self.run.sequences, s.batch_size)?);
            self.run.sequences += s.batch_size as u64;
        }
        let counted: usize = batches.iter().map(Batch::counted).sum();
        for (micro, batch) in (0u64..).zip(&batches) {
            // Every token counts the same, however many there are in its pass.
            let scale = (batch.counted() as f64 / counted as f64) as f32;
            let taught = self.teacher.as_ref().map(|teacher| teacher.logits(&batch.x, s.batch_size, s.max_seq_len));
            let taught = taught.transpose()?;
            let teacher = taught.as_ref().map(|logits| model::Teacher {
                logits,
                weight: s.teacher_weight as f32,
                temperature: s.teacher_temperature as f32,
            });
            let seed = mix(&[s.seed, self.run.iter, micro]);
            let options = Options { dropout: s.dropout as f32, seed, teacher };
            loss += self.model.loss_and_gradients(&for_model(batch, s.max_seq_len), &options, scale, &mut gradients)?
                * scale;
        }
        let norm = clip_gradients(&self.model, &mut gradients, s.grad_clip as f32)?;
        self.check_finite("loss", f64::from(loss))?;
        if self.can_step(norm)? {
            self.optimizer.step(&mut self.model, learning_rate(s, self.run.iter), &mut gradients)?;
        }
        self.run.iter += 1;
        Ok(f64::from(loss))
    }

    /// The scale of a training in float16.
    fn loss_scale(&self) -> Option<LossScale> {
        self.run.loss_scale.filter(|_| self.model.dtype == Dtype::Float16)
    }

    /// Whether the gradients can be used: in float16 they may overflow, which the loss scale learns
    /// from.
    fn can_step(&mut self, norm: f32) -> anyhow::Result<bool> {
        let Some(mut scale) = self.loss_scale() else {
            self.check_finite("norm of the gradients", f64::from(norm))?;
            return Ok(true);
        };
        let can_step = scale.update(norm.is_finite());
        self.run.loss_scale = Some(scale);
        if scale.is_used_up() {
            self.check_finite("norm of the gradients", f64::from(norm))?;
        }
        if !can_step {
            self.report.say(format!(
                "step {} is skipped, as its gradients overflow: loss scale {}, {} steps skipped so far",
                self.run.iter, scale.scale, scale.skipped
            ));
        }
        Ok(can_step)
    }

    fn check_finite(&self, what: &str, value: f64) -> anyhow::Result<()> {
        let last = match self.checkpoints.last() {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        };
        ensure!(
            value.is_finite(),
            "the {what} is {value} at step {}: the training diverged; lower learning_rate. {last}",
            self.run.iter
        );
        Ok(())
    }

    /// Evaluates and saves a checkpoint, unless this step has been evaluated already.
    fn evaluate_and_save(&mut self) -> anyhow::Result<()> {
        if self.run.evaluated == Some(self.run.iter) {
            return Ok(());
        }
        let loss = self.evaluate()?;
        self.check_finite("validation loss", loss)?;
        if self.run.iter == 0 {
            self.warn_if_worse_than_guessing(loss);
            return Ok(());
        }
        self.run.best_loss = self.run.best_loss.min(loss);
        self.save()
    }

    /// Warns if a model to fine-tune is worse than one that gives every token the same probability.
    fn warn_if_worse_than_guessing(&self, loss: f64) {
        let guessing = (self.model.config.vocab_size as f64).ln();
        if let InitFrom::Model(path) = &self.settings.init_from
            && loss > guessing
        {
            self.report.say(format!(
                "warning: the first validation loss is {loss:.2}, and guessing gives {guessing:.2}: {path} does not know these \
                 tokens. Is {} its tokenizer?",
                self.data.tokenizer_path().display()
            ));
        }
    }

    /// Reports the loss of both splits and tells a story. Returns the loss of the validation split.
    fn evaluate(&mut self) -> anyhow::Result<f64> {
        self.run.evaluated = Some(self.run.iter);
        let ((train_loss, _), (val_loss, tokens_per_byte)) =
            (self.mean_loss(&self.train)?, self.mean_loss(&self.valid)?);
        self.report.evaluation(Evaluation {
            iter: self.run.iter,
            train_loss,
            val_loss,
            val_perplexity: Some(val_loss.exp()),
            val_nats_per_byte: Some(val_loss * tokens_per_byte),
            tokens: self.run.sequences * self.settings.max_seq_len as u64,
            seconds: self.run.seconds,
        })?;
        self.report.say(self.data.sample(&self.weights(), self.settings.seed)?);
        Ok(val_loss)
    }

    /// The loss in nats per token that counts, on fixed sequences, and the tokens per byte.
    fn mean_loss(&self, sequences: &Sequences<'_>) -> anyhow::Result<(f64, f64)> {
        let s = self.settings;
        let (mut sum, mut n, mut bytes) = (0.0, 0.0, 0);
        for i in 0..s.eval_iters {
            let Some(batch) = sequences.fixed(i, s.eval_iters, s.batch_size)? else { break };
            let weight = batch.counted() as f64 / s.max_seq_len as f64; // in sequences
            let counted = batch.y.iter().filter(|target| **target != IGNORED);
            bytes += counted.map(|&token| self.token_lengths[token as usize]).sum::<usize>();
            sum += f64::from(self.model.loss(&for_model(&batch, s.max_seq_len))?) * weight;
            n += weight;
        }
        Ok((sum / n, n * s.max_seq_len as f64 / bytes as f64))
    }

    fn weights(&self) -> Weights {
        Weights { header: self.run.header(), tensors: self.model.merged() }
    }

    fn save(&mut self) -> anyhow::Result<()> {
        let tensors = saved::tensors(&self.model, &self.optimizer);
        self.checkpoints.save(&self.run, &tensors, self.data.vocabulary().bytes())
    }

    /// Exports the best weights and reports their loss.
    fn finish(self) -> anyhow::Result<()> {
        let s = self.settings;
        let best = self.checkpoints.read_best()?;
        let is_saved = best.is_some();
        let weights = best.map_or_else(|| Ok(self.weights()), |mut best| Weights::from_checkpoint(&mut best))?;
        let vocabulary = self.data.vocabulary();
        let parts = Parts {
            header: &weights.header,
            vocabulary: Some(&vocabulary),
            template: self.run.template.as_deref(),
            values: &weights,
        };
        let written = target(s, &weights.header).write(&parts);
        if is_saved {
            written.with_context(|| format!("the weights are safe: trainer export {} OUT.bin", s.out_dir.display()))?;
        } else {
            written?;
        }
        let reached = if self.run.best_loss.is_finite() {
            format!("best validation loss {:.4} nats per token", self.run.best_loss)
        } else {
            "as they were before the first step".into()
        };
        self.report.say(format!(
            "{}: {} parameters after {} tokens in {}; {reached}, entropy of single tokens {:.4}",
            s.export_path().display(),
            self.model.parameter_count(),
            self.run.sequences * s.max_seq_len as u64,
            HumanDuration(Duration::from_secs_f64(self.run.seconds)),
            self.data.unigram_entropy()?,
        ));
        self.report.finish()
    }
}
