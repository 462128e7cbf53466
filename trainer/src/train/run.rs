//! A training run: steps, evaluations, checkpoints, and the export at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dfdx::prelude::{Cache, Cpu};
use indicatif::HumanDuration;
use infer_core::format::{Header, Version};

use crate::io::checkpoint::{Checkpoints, Order, Run};
use crate::io::files::{SETTINGS, write_whole};
use crate::io::foreign::Parts;
use crate::io::vocabulary::Vocabulary;
use crate::io::weights::Weights;
use crate::model::{AdamW, Adapters, AllReduce, Backend, Dtype, Llama};
use crate::report::Report;
use crate::report::metric::{Evaluation, Window};
use crate::report::output::{Told, note};
use crate::report::peak;
use crate::train::corpus::{Corpus, Sequences};
use crate::train::group::Group;
use crate::train::interrupt::Interrupt;
use crate::train::memory;
use crate::train::prepare::{Prepared, target};
use crate::train::saved;
use crate::train::schedule::learning_rate;
use crate::train::settings::{Device, InitFrom, Settings};
use crate::train::share::Share;
use crate::train::start::{Start, describe, describe_trained};

/// Trains on the device that the settings name.
///
/// # Errors
/// Settings, files and weights that do not fit together, found before the first step; a training
/// that diverges; files that cannot be written.
pub fn run(settings: &Settings, group: &Group) -> anyhow::Result<()> {
    match &settings.device {
        Device::Cpu => {
            let device = Cpu::default();
            device.enable_cache(); // each step reuses the memory of the gradients of the last
            run_on(settings, device, group, |_| Ok(None))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => {
            let device = group.agree(crate::model::open_gpu(group.gpu(*number)))?;
            run_on(settings, device, group, |device| crate::train::gpus::connect(device, group))
        }
        // `Settings::check` refuses these; a caller of the library may not have called it.
        other => bail!("device is {:?}: not in this program", String::from(other.clone())),
    }
}

fn run_on<D: Backend>(
    settings: &Settings,
    device: D,
    group: &Group,
    connect: impl FnOnce(&D) -> anyhow::Result<Option<Box<dyn AllReduce<D>>>>,
) -> anyhow::Result<()> {
    let prepared = group.prepare(
        |text| match text {
            None => Prepared::new(settings.clone(), group),
            Some(text) => Prepared::new(toml::from_str(&text)?, group),
        },
        Prepared::for_others,
    );
    let Prepared { settings, start, data, lock: _lock } = prepared?;
    let settings = &settings;
    // An evaluation sums none. The settings are rank 0's by now, so all ranks connect, or no rank.
    let devices = if settings.eval_only { None } else { connect(&device)? };
    group.agree(memory::check_device(settings, &start.config(settings)?, device.free_memory()))?;
    let mut training = group.agree(Training::new(settings, device, &data, start, group))?;
    training.devices = devices;
    group.check_equal(&training.model, &training.run)?;
    if settings.eval_only {
        let loss = training.evaluate()?;
        training.warn_if_worse_than_guessing(loss);
        return Ok(());
    }
    training.begin()?;
    training.train()?;
    training.finish()
}

/// A run in progress.
pub(super) struct Training<'a, D: Backend> {
    pub(super) settings: &'a Settings,
    pub(super) group: &'a Group,
    pub(super) data: &'a Corpus,
    pub(super) train: Sequences<'a>,
    pub(super) valid: Sequences<'a>,
    pub(super) model: Llama<D>,
    pub(super) optimizer: AdamW<D>,
    pub(super) teacher: Option<Llama<D>>,
    /// The devices of all ranks, if they are connected.
    pub(super) devices: Option<Box<dyn AllReduce<D>>>,
    pub(super) run: Run,
    pub(super) checkpoints: Checkpoints,
    pub(super) report: Report,
    pub(super) interrupt: Interrupt,
    /// Bytes of text of each token.
    pub(super) token_lengths: Vec<usize>,
}

impl<'a, D: Backend> Training<'a, D> {
    fn new(
        settings: &'a Settings,
        device: D,
        data: &'a Corpus,
        start: Start,
        group: &'a Group,
    ) -> anyhow::Result<Self> {
        let s = settings;
        let (train, valid) = (data.train(s)?, data.valid(s)?);
        let config = start.config(s)?;
        let header = data.header(&start.header(s)?.unwrap_or(Header::new(Version::V1, config)))?;
        let order = Order {
            seed: s.seed,
            batch_size: s.batch_size,
            // The passes of all ranks: so a checkpoint does not depend on their number.
            gradient_accumulation_steps: s.gradient_accumulation_steps * group.size(),
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
            if !checkpoint.run.order.is_same(&order) {
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
            None if !group.leads() => (1.0, "of no use, as rank 0 reports"),
            None => (peak::measure() * group.size() as f64, "measured in f32"),
        };
        let report = Report::new(&s.out_dir, &config, run.iter, s.max_iters, peak);
        report.say(format!(
            "{} parameters: {}{}\nmatrix products in {}\n{}\
             {} sequences of {} tokens to train on{}, {} to validate on; {} tokens per step\n\
             mfu is relative to {peak:.0} GFLOP/s, {how}",
            model.parameter_count(),
            describe(&config),
            describe_trained(&model),
            match s.device {
                Device::Cpu => model.dtype.on_cpu(s.matmul_precision),
                _ => model.dtype.on_gpu(s.matmul_precision),
            },
            group.describe(),
            train.number(),
            s.max_seq_len,
            train.describe_fullness(),
            valid.number(),
            Share { settings: s, group }.tokens(),
        ));
        Ok(Training {
            settings,
            group,
            data,
            train,
            valid,
            model,
            optimizer,
            teacher,
            devices: None,
            run,
            checkpoints,
            report,
            interrupt,
            token_lengths,
        })
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let group = self.group;
        self.interrupt = Interrupt::catch(group.size() > 1)?;
        group.lead(|| self.open())
    }

    /// Opens the run's files and writes settings.toml, from which a run resumes.
    fn open(&mut self) -> anyhow::Result<()> {
        let header = self.run.header();
        let target = target(self.settings, &header);
        target.version.header(&header).with_context(|| target.path.display().to_string())?;
        target.check_beside(&header, Some(&self.data.vocabulary()), self.run.template.as_deref())?;
        self.checkpoints.begin(self.run.iter, self.settings.always_save_checkpoint)?;
        if let (Some(Adapters { lora, .. }), None) = (&self.model.adapters, self.run.lora) {
            self.run.lora = Some((*lora, self.checkpoints.save_base(&saved::base(&self.model)?)?));
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
        let (s, group) = (self.settings, self.group);
        let tokens = Share { settings: s, group }.tokens();
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
            self.report.progress(self.run.iter, loss, time, tokens);
            if self.run.iter.is_multiple_of(s.log_interval) {
                let (loss, time) = std::mem::take(&mut window).means();
                let lr = learning_rate(s, self.run.iter - 1);
                self.report.steps(self.run.iter, loss, lr, time, tokens)?;
            }
            if let Some(status) = group.first_of(self.interrupt.status()) {
                group.lead(|| self.save())?;
                self.report.clear();
                self.report.say(format!(
                    "interrupted after step {}, which is saved: go on with --config {} --init-from resume",
                    self.run.iter,
                    s.out_dir.join(SETTINGS).display()
                ));
                return Err(Told(status).into());
            }
        }
        self.evaluate_and_save()
    }

    /// Evaluates and saves a checkpoint, unless this step has been evaluated already.
    fn evaluate_and_save(&mut self) -> anyhow::Result<()> {
        if self.run.evaluated == Some(self.run.iter) {
            return Ok(());
        }
        let loss = self.evaluate()?;
        self.group.alike(self.check_finite("validation loss", loss))?;
        if self.run.iter == 0 {
            self.warn_if_worse_than_guessing(loss);
            return Ok(());
        }
        self.run.best_loss = self.run.best_loss.min(loss);
        let group = self.group;
        group.check_equal(&self.model, &self.run)?;
        group.lead(|| self.save())
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
        let share = Share { settings: self.settings, group: self.group };
        let mean = |of: &Sequences<'_>| share.mean_loss(&self.model, of, &self.token_lengths);
        let ((train_loss, _), (val_loss, tokens_per_byte)) = (mean(&self.train)?, mean(&self.valid)?);
        self.report.evaluation(Evaluation {
            iter: self.run.iter,
            train_loss,
            val_loss,
            val_perplexity: Some(val_loss.exp()),
            val_nats_per_byte: Some(val_loss * tokens_per_byte),
            tokens: self.run.sequences * self.settings.max_seq_len as u64,
            seconds: self.run.seconds,
        })?;
        self.group.lead(|| {
            self.report.say(self.data.sample(&self.weights()?, self.settings.seed)?);
            Ok(())
        })?;
        Ok(val_loss)
    }

    fn weights(&self) -> anyhow::Result<Weights> {
        Ok(Weights { header: self.run.header(), tensors: self.model.merged()? })
    }

    fn save(&mut self) -> anyhow::Result<()> {
        let tensors = saved::tensors(&self.model, &mut self.optimizer)?;
        self.checkpoints.save(&self.run, &tensors, self.data.vocabulary().bytes())
    }

    fn finish(self) -> anyhow::Result<()> {
        let group = self.group;
        group.lead(|| self.export())
    }

    /// Exports the best weights and reports their loss.
    fn export(self) -> anyhow::Result<()> {
        let s = self.settings;
        let best = self.checkpoints.read_best()?;
        let is_saved = best.is_some();
        let weights = best.map_or_else(|| self.weights(), |mut best| Weights::from_checkpoint(&mut best))?;
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
