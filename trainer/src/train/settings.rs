//! The settings of a training run. Those that llama2.c's train.py has too have the same names.

mod choices;

use std::path::PathBuf;

use anyhow::{anyhow, bail, ensure};
use infer_core::Config;
use serde::{Deserialize, Serialize};

use crate::data::separator::Separator;
use crate::data::vocab;
use crate::io::lora::Lora;
use crate::io::weights::FileVersion;
use crate::model::{self, MatmulPrecision};

pub use choices::{Device, Dtype, InitFrom, VocabSource};

/// Each field is a flag (`--max-iters`) and a key of the TOML file (`max_iters`). The defaults
/// train a small model on two cores in under two minutes.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder of checkpoints, metrics and the loss curve
    #[arg(long, default_value = "out", help_heading = "Files")]
    pub out_dir: PathBuf,
    /// A text, a folder of stories, or of token shards [default: what `trainer download` and
    /// `trainer pretokenize` left in data/, else a generated corpus]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub data: Option<PathBuf>,
    /// Stories to validate on, where they are not tokenised yet [default: files that are named so,
    /// the first of several .json files, one story in twenty, or the last tenth of a text with few
    /// stories]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub valid: Option<PathBuf>,
    /// What separates the stories of plain text; \n is a line end of any kind [default:
    /// <|endoftext|>]
    #[arg(long, value_name = "TEXT", help_heading = "Files")]
    pub separator: Option<Separator>,
    /// Chats to learn, one JSON object per line: {"messages": [{"role", "content"}, …]} or
    /// {"prompt", "response"}
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Files")]
    pub chats: Option<PathBuf>,
    /// Chats to validate on [default: one in twenty, or the last tenth of few]
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Files")]
    pub chats_valid: Option<PathBuf>,
    /// How a chat is written down: llama2, chatml, llama3, plain, or a file of Jinja [default: the
    /// model's, else llama2]
    #[arg(long, value_name = "NAME", help_heading = "Files")]
    pub template: Option<String>,
    /// Where the trained model goes, with tokenizer.bin beside it [default: model.bin in out_dir]
    #[arg(long, value_name = "MODEL.bin", help_heading = "Files")]
    pub export: Option<PathBuf>,
    /// File version of the exported model: 0 and 1 are f32, 2 is int8 [default: 0, or 1 for models
    /// that version 0 cannot describe]
    #[arg(long, value_enum, help_heading = "Files")]
    pub export_version: Option<FileVersion>,
    /// `scratch`, `resume` from the last checkpoint in out_dir, or a model.bin to fine-tune
    #[arg(long, default_value = "scratch", help_heading = "Files")]
    pub init_from: InitFrom,
    /// `custom`: a vocabulary trained on the stories; `llama2`: the 32,000 tokens of Llama 2, as
    /// given by --tokenizer
    #[arg(long, default_value = "custom", help_heading = "Files")]
    pub vocab_source: VocabSource,
    /// Tokenizer of the stories; of the model to start from and of the teacher, where it is not
    /// beside them [default: one is trained]
    #[arg(long, value_name = "tokenizer.bin", help_heading = "Files")]
    pub tokenizer: Option<PathBuf>,

    /// Width of the residual stream
    #[arg(long, default_value_t = 64, help_heading = "Model")]
    pub dim: usize,
    /// Transformer layers
    #[arg(long, default_value_t = 4, help_heading = "Model")]
    pub n_layers: usize,
    /// Query heads
    #[arg(long, default_value_t = 4, help_heading = "Model")]
    pub n_heads: usize,
    /// Key/value heads [default: n_heads]
    #[arg(long, help_heading = "Model")]
    pub n_kv_heads: Option<usize>,
    /// Width of the feed-forward network [default: 2/3 of 4 dim, rounded up to multiple_of]
    #[arg(long, help_heading = "Model")]
    pub hidden_dim: Option<usize>,
    /// What hidden_dim is rounded up to
    #[arg(long, default_value_t = 32, help_heading = "Model")]
    pub multiple_of: usize,
    /// Number of tokens [default: that of the shards or the tokenizer, else 512 or as near to it as
    /// the text allows]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub vocab_size: Option<usize>,
    /// Positions of a training sequence, and of the model
    #[arg(long, default_value_t = 256, help_heading = "Model")]
    pub max_seq_len: usize,
    /// Train adapters of this rank in place of the weights (LoRA), and add them to the exported
    /// model
    #[arg(long, value_name = "R", help_heading = "Model")]
    pub lora_rank: Option<usize>,
    /// Scale of the adapters times their rank [default: 2 lora_rank]
    #[arg(long, value_name = "A", help_heading = "Model")]
    pub lora_alpha: Option<f64>,
    /// Probability of dropping an activation
    #[arg(long, default_value_t = 0.0, help_heading = "Model")]
    pub dropout: f64,

    /// Optimiser steps
    #[arg(long, default_value_t = 300, help_heading = "Training")]
    pub max_iters: u64,
    /// Sequences per forward and backward pass
    #[arg(long, default_value_t = 8, help_heading = "Training")]
    pub batch_size: usize,
    /// Passes whose gradients are averaged for one step
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    pub gradient_accumulation_steps: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 3e-3, help_heading = "Training")]
    pub learning_rate: f64,
    /// Let the learning rate fall along a cosine to min_lr
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, help_heading = "Training")]
    pub decay_lr: bool,
    /// Learning rate at the end
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    pub min_lr: f64,
    /// Steps over which the learning rate rises from 0
    #[arg(long, default_value_t = 30, help_heading = "Training")]
    pub warmup_iters: u64,
    /// Decay of the matrices, as in AdamW; norms do not decay
    #[arg(long, default_value_t = 0.1, help_heading = "Training")]
    pub weight_decay: f64,
    /// Memory of AdamW's first moment
    #[arg(long, default_value_t = 0.9, help_heading = "Training")]
    pub beta1: f64,
    /// Memory of AdamW's second moment
    #[arg(long, default_value_t = 0.95, help_heading = "Training")]
    pub beta2: f64,
    /// Longest gradient; 0 does not clip
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub grad_clip: f64,
    /// Seed of the weights, the order of the data, dropout and sampled text
    #[arg(long, default_value_t = 1337, help_heading = "Training")]
    pub seed: u64,
    /// `cpu`; in a build with the feature `cuda`, `cuda` or, for a GPU but the first, `cuda:1`
    #[arg(long, default_value = "cpu", help_heading = "Training")]
    pub device: Device,
    /// Number format of products and activations: float32, bfloat16, or on a GPU float16; weights,
    /// their gradients and moments, norms, losses and sums are float32 in every case
    #[arg(long, default_value = "float32", help_heading = "Training")]
    pub dtype: Dtype,
    /// Precision of matrix products
    #[arg(long, value_enum, default_value = "high", help_heading = "Training")]
    pub matmul_precision: MatmulPrecision,
    /// On a GPU, compute activations again in backward rather than to keep them: a third more
    /// operations, and memory for one layer
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    #[arg(action = clap::ArgAction::Set, help_heading = "Training")]
    pub recompute: bool,

    /// Steps between evaluations; each writes a checkpoint
    #[arg(long, default_value_t = 100, help_heading = "Evaluation")]
    pub eval_interval: u64,
    /// Batches of each split in an evaluation, the same ones every time
    #[arg(long, default_value_t = 20, help_heading = "Evaluation")]
    pub eval_iters: usize,
    /// Evaluate and stop
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    #[arg(action = clap::ArgAction::Set, help_heading = "Evaluation")]
    pub eval_only: bool,
    /// Keep the checkpoint of every evaluation, not only the best and the last
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    #[arg(action = clap::ArgAction::Set, help_heading = "Evaluation")]
    pub always_save_checkpoint: bool,
    /// Steps between lines of the log
    #[arg(long, default_value_t = 10, help_heading = "Evaluation")]
    pub log_interval: u64,
    /// Peak of the machine in GFLOP/s, for the utilisation (mfu) [default: measured with a matrix
    /// product]
    #[arg(long, help_heading = "Evaluation")]
    pub peak_gflops: Option<f64>,

    /// Model file with the same vocabulary, whose predictions are learnt beside the text
    #[arg(long, value_name = "MODEL.bin", help_heading = "Distillation")]
    pub teacher: Option<PathBuf>,
    /// Share of the teacher in the loss, the text has the rest
    #[arg(long, default_value_t = 0.5, help_heading = "Distillation")]
    pub teacher_weight: f64,
    /// Temperature of the teacher's predictions: below 1 sharpens them
    #[arg(long, default_value_t = 1.0, help_heading = "Distillation")]
    pub teacher_temperature: f64,
    /// Stories to sample from the teacher and add to the training data
    #[arg(long, default_value_t = 0, help_heading = "Distillation")]
    pub teacher_stories: usize,
}

impl Settings {
    /// Shape of the model.
    pub fn config(&self) -> Config {
        let hidden_dim = self.hidden_dim.unwrap_or_else(|| {
            let two_thirds = self.dim.saturating_mul(8) / 3;
            two_thirds.checked_next_multiple_of(self.multiple_of).unwrap_or(usize::MAX)
        });
        let vocab_size = self.vocab_size.unwrap_or(vocab::SIZE);
        Config::new(self.dim, hidden_dim, self.n_layers, self.n_heads, vocab_size, self.max_seq_len)
            .with_kv_heads(self.n_kv_heads.unwrap_or(self.n_heads))
    }

    /// Where the trained model goes.
    pub fn export_path(&self) -> PathBuf {
        self.export.clone().unwrap_or_else(|| self.out_dir.join("model.bin"))
    }

    /// The adapters that are trained, if any.
    pub fn lora(&self) -> Option<Lora> {
        let rank = self.lora_rank?;
        Some(Lora::new(rank, self.lora_alpha.unwrap_or(2.0 * rank as f64) as f32))
    }

    /// Checks the rules that the settings must keep.
    ///
    /// # Errors
    /// Names the first setting that breaks one.
    pub fn check(&self) -> anyhow::Result<()> {
        let at_least_1 = [
            ("multiple_of", self.multiple_of as u64),
            ("batch_size", self.batch_size as u64),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps as u64),
            ("eval_interval", self.eval_interval),
            ("eval_iters", self.eval_iters as u64),
            ("log_interval", self.log_interval),
        ];
        for (name, value) in at_least_1 {
            ensure!(value >= 1, "{name} is 0: it must be at least 1");
        }
        self.check_shape()?;
        let ranges = [
            ("dropout", self.dropout, 0.0, 0.99),
            ("learning_rate", self.learning_rate, 0.0, 1.0),
            ("min_lr", self.min_lr, 0.0, self.learning_rate),
            ("weight_decay", self.weight_decay, 0.0, 10.0),
            ("beta1", self.beta1, 0.0, 0.9999),
            ("beta2", self.beta2, 0.0, 0.999999),
            ("grad_clip", self.grad_clip, 0.0, 1e9),
            ("teacher_weight", self.teacher_weight, 0.0, 1.0),
            ("teacher_temperature", self.teacher_temperature, 0.01, 100.0),
            ("peak_gflops", self.peak_gflops.unwrap_or(1.0), 0.001, 1e9),
        ];
        for (name, value, from, to) in ranges {
            ensure!(value >= from && value <= to, "{name} is {value}: it must be from {from} to {to}");
        }
        match &self.device {
            Device::Cpu | Device::Cuda(_) => {}
            Device::Unknown(other) => bail!("device is {other:?}: it must be cpu, cuda or cuda:NUMBER"),
        }
        self.check_dtype()?;
        self.check_chats()?;
        self.check_lora()?;
        ensure!(self.teacher_stories == 0 || self.teacher.is_some(), "teacher_stories needs a teacher to tell them");
        match &self.vocab_source {
            VocabSource::Custom => {}
            VocabSource::Llama2 => ensure!(
                self.vocab_size.is_none_or(|n| n == 32000) && self.tokenizer.is_some(),
                "vocab_source llama2 needs its tokenizer.bin of 32,000 tokens: give it with --tokenizer"
            ),
            VocabSource::Unknown(other) => bail!("vocab_source is {other:?}: it must be custom or llama2"),
        }
        Ok(())
    }

    fn check_dtype(&self) -> anyhow::Result<()> {
        let on_cpu = self.device == Device::Cpu;
        match &self.dtype {
            Dtype::Unknown(other) => bail!("dtype is {other:?}: it must be float32, bfloat16 or float16"),
            Dtype::Known(model::Dtype::Float16) if on_cpu => {
                bail!("dtype is float16: it is for a GPU; take --dtype float32 or bfloat16")
            }
            Dtype::Known(_) => {}
        }
        ensure!(
            !(self.recompute && on_cpu),
            "recompute is for a GPU: a CPU keeps the activations; leave it out, or say --recompute=false"
        );
        Ok(())
    }

    /// Checks that this program, on this machine, can train with the settings.
    ///
    /// # Errors
    /// Says what is missing. Whether there is a GPU shows when it is opened.
    pub fn check_machine(&self) -> anyhow::Result<()> {
        ensure!(
            self.device == Device::Cpu || cfg!(feature = "cuda"),
            "device is {}: this program was built without the feature `cuda` (docs/TRAINING.md, \"On a GPU\")",
            String::from(self.device.clone())
        );
        ensure!(
            self.device != Device::Cpu || self.dtype.format().is_on_cpu(),
            "dtype is bfloat16: this CPU multiplies no bfloat16 (it has neither AMX nor AVX512-BF16); \
             compute in float32"
        );
        Ok(())
    }

    fn check_chats(&self) -> anyhow::Result<()> {
        let stories = [
            ("data", self.data.is_some()),
            ("valid", self.valid.is_some()),
            ("separator", self.separator.is_some()),
            ("teacher", self.teacher.is_some()),
        ];
        let chats = [("chats_valid", self.chats_valid.is_some()), ("template", self.template.is_some())];
        let needed = if self.chats.is_some() { &stories[..] } else { &chats[..] };
        if let Some((name, _)) = needed.iter().find(|(_, is_given)| *is_given) {
            match &self.chats {
                Some(_) => bail!("{name} is for stories: leave it out, or leave out chats"),
                None => bail!("{name} is for chats: give them with chats"),
            }
        }
        Ok(())
    }

    fn check_lora(&self) -> anyhow::Result<()> {
        let Some(rank) = self.lora_rank else {
            ensure!(self.lora_alpha.is_none(), "lora_alpha is for adapters: give their rank with lora_rank");
            return Ok(());
        };
        ensure!(rank >= 1, "lora_rank is 0: it must be at least 1; leave it out to train the weights themselves");
        let alpha = self.lora_alpha.unwrap_or(1.0);
        ensure!(alpha > 0.0 && alpha <= 1e6, "lora_alpha is {alpha}: it must be above 0 and at most 1000000");
        ensure!(
            self.init_from != InitFrom::Scratch,
            "lora_rank is for weights that are there: name a model with init_from, or leave it out"
        );
        ensure!(self.device == Device::Cpu, "lora_rank is for a CPU: a GPU trains all weights so far");
        Ok(())
    }

    /// The rules of infer-core for a header, in words of the settings.
    fn check_shape(&self) -> anyhow::Result<()> {
        let config = self.config();
        let Config { dim, n_heads, .. } = config;
        match config.check() {
            Err(infer_core::Error::Header { field, rule, .. }) => Err(match field {
                "dim" => anyhow!("dim is {dim}: {rule}"),
                "hidden_dim" => anyhow!("hidden_dim is {}: {rule}", config.hidden_dim),
                "n_layers" => anyhow!("n_layers is {}: {rule}", self.n_layers),
                "n_heads" => anyhow!("n_heads is {n_heads}: {}", rule.replacen("dim", &format!("dim {dim}"), 1)),
                "n_kv_heads" => {
                    let rule = rule.replacen("n_heads", &format!("n_heads {n_heads}"), 1);
                    anyhow!("n_kv_heads is {}: {rule}", config.n_kv_heads)
                }
                "seq_len" => anyhow!("max_seq_len is {}: {rule}", self.max_seq_len),
                other => anyhow!("{other} is {}: {rule}", self.config().vocab_size),
            }),
            result => Ok(result?),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    /// The settings of a command line.
    pub fn parse(flags: &[&str]) -> anyhow::Result<Settings> {
        let command = Settings::augment_args(Command::new("trainer").no_binary_name(true));
        let settings = Settings::from_arg_matches(&command.try_get_matches_from(flags)?)?;
        settings.check()?;
        Ok(settings)
    }

    #[test]
    fn hidden_dim_follows_llama2c() {
        let hidden = |flags: &[&str]| parse(flags).unwrap().config().hidden_dim;
        assert_eq!(hidden(&["--dim", "64", "--multiple-of", "4"]), 172); // stories260K
        assert_eq!(hidden(&["--dim", "288", "--n-heads", "6"]), 768); // stories15M
        assert_eq!(hidden(&["--hidden-dim", "192"]), 192);
    }
}
