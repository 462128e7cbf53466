//! Finds the weights that a run starts from: random ones, a checkpoint, or a model file.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use infer_core::format::{Header, Version};
use infer_core::{Config, MappedModel, WeightType};
use infer_text::{BESIDE, Template};

use crate::data::tokenizer::TokenizerFile;
use crate::io::checkpoint::{Checkpoint, Checkpoints};
use crate::io::files::{SETTINGS, TOKENIZER, folder_of, open_model};
use crate::io::lora::Lora;
use crate::model::{AdamW, Backend, Llama};
use crate::train::saved;
use crate::train::settings::{InitFrom, Settings};

/// The origin of the weights.
pub enum Start {
    /// A random initialisation.
    Scratch,
    /// The last checkpoint of the run in out_dir.
    Resume(Box<Checkpoint>),
    /// A model file.
    FineTune {
        /// The path of the file.
        path: PathBuf,
        /// The file.
        file: MappedModel,
    },
}

impl Start {
    /// Finds the weights that init_from names.
    ///
    /// # Errors
    /// There are no such weights, they do not fit the settings, or out_dir holds another run, which
    /// would be overwritten.
    pub fn find(settings: &Settings) -> anyhow::Result<Start> {
        let checkpoints = Checkpoints::open(&settings.out_dir)?;
        match (&settings.init_from, checkpoints.last()) {
            (InitFrom::Resume, _) => {
                let Some(checkpoint) = checkpoints.read_last()? else {
                    bail!("there is no checkpoint in {} to resume from", settings.out_dir.display());
                };
                let has = checkpoint.run.config();
                let mut wants = settings.config();
                wants.vocab_size = settings.vocab_size.unwrap_or(has.vocab_size);
                // No setting decides whether the classifier is shared: the weights do.
                wants.shared_classifier = has.shared_classifier;
                (wants.rope, wants.norm_eps) = (has.rope, has.norm_eps);
                ensure!(
                    has == wants,
                    "the checkpoint {} has {}, but the settings ask for {}: resume with {}",
                    checkpoint.path.display(),
                    describe(&has),
                    describe(&wants),
                    settings.out_dir.join(SETTINGS).display()
                );
                let lora = checkpoint.run.lora.map(|(lora, _)| lora);
                ensure!(
                    lora.map(|lora| Lora::new(lora.rank, lora.alpha)) == settings.lora(),
                    "the checkpoint {} has {}, but the settings ask for {}: resume with {}",
                    checkpoint.path.display(),
                    describe_lora(lora),
                    describe_lora(settings.lora()),
                    settings.out_dir.join(SETTINGS).display()
                );
                Ok(Start::Resume(Box::new(checkpoint)))
            }
            (_, Some(last)) if !settings.eval_only => bail!(
                "{} holds a run already, up to {}: go on with --config {} --init-from resume, or name another --out-dir",
                settings.out_dir.display(),
                last.display(),
                settings.out_dir.join(SETTINGS).display()
            ),
            (InitFrom::Scratch, _) => Ok(Start::Scratch),
            (InitFrom::Model(path), _) => {
                let file = open_model(path)
                    .with_context(|| format!("init_from is {path:?}, neither scratch nor resume nor a model file"))?;
                Ok(Start::FineTune { path: path.into(), file })
            }
        }
    }

    /// The tokenizer of the weights. Random weights have none.
    ///
    /// # Errors
    /// As [`TokenizerFile::from_bytes`] and [`TokenizerFile::of_model`].
    pub fn tokenizer(&self, given: Option<&TokenizerFile>) -> anyhow::Result<Option<TokenizerFile>> {
        match self {
            Start::Scratch => Ok(None),
            Start::Resume(last) => {
                TokenizerFile::from_bytes(&last.path.join(TOKENIZER), last.tokenizer.clone()).map(Some)
            }
            Start::FineTune { path, file } => {
                TokenizerFile::of_model(path, file.model()?.config().vocab_size, given).map(Some)
            }
        }
    }

    /// The header of the weights: special tokens, chat template and shape. Random weights have
    /// none.
    ///
    /// # Errors
    /// The model file is no longer the one that was opened.
    pub fn header(&self, settings: &Settings) -> anyhow::Result<Option<Header>> {
        Ok(match self {
            Start::Scratch => None,
            Start::Resume(checkpoint) => Some(checkpoint.run.header()),
            Start::FineTune { file, .. } => Some(trained(&file.model()?.header(), settings.max_seq_len)),
        })
    }

    /// The source of the model's chat template, if it has one of its own.
    ///
    /// # Errors
    /// The file beside the model cannot be read.
    pub fn template(&self) -> anyhow::Result<Option<String>> {
        match self {
            Start::Scratch => Ok(None),
            Start::Resume(checkpoint) => Ok(checkpoint.run.template.clone()),
            Start::FineTune { path, file } => {
                let template = Template::of(&file.model()?.header(), folder_of(path))?;
                Ok(template.filter(|template| template.name() == BESIDE).map(|t| t.jinja_source().to_string()))
            }
        }
    }

    /// Shape of the model. Only random weights have the shape that the settings describe.
    ///
    /// # Errors
    /// The model file is no longer the one that was opened.
    pub fn config(&self, settings: &Settings) -> anyhow::Result<Config> {
        // As in llama2.c, a model to fine-tune gets as many positions as a training sequence has.
        // No weight depends on their number: rotary angles are computed.
        Ok(self.header(settings)?.map_or_else(|| settings.config(), |header| header.config))
    }

    /// The model and its optimiser, which has the moments of a checkpoint if there is one. A model
    /// file gets the adapters `lora`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device has no memory.
    pub fn into_model<D: Backend>(
        self,
        config: Config,
        device: &D,
        s: &Settings,
        lora: Option<Lora>,
    ) -> anyhow::Result<(Llama<D>, AdamW<D>)> {
        let (model, moments) = match self {
            Start::Scratch => (Llama::init(config, device, s.seed)?, None),
            Start::FineTune { file, .. } => {
                let mut model = Llama::from_model(&file.model()?, device)?;
                model.config = config;
                lora.map(|lora| model.adapt(lora, s.seed)).transpose()?;
                (model, None)
            }
            Start::Resume(checkpoint) => {
                let steps = checkpoint.run.updates();
                let (model, moments) = saved::restore(*checkpoint, config, device)?;
                (model, Some((moments, steps)))
            }
        };
        let mut optimizer = AdamW::new(&model, [s.beta1, s.beta2], s.weight_decay)?;
        if let Some(([moment1, moment2], steps)) = moments {
            optimizer.set_moments(&model, [&moment1, &moment2], steps as u32)?;
        }
        Ok((model, optimizer))
    }
}

fn describe_lora(lora: Option<Lora>) -> String {
    lora.map_or("no adapters".into(), |lora| {
        format!("adapters with lora_rank {} and lora_alpha {}", lora.rank, lora.alpha)
    })
}

/// The header of weights in training, from that of the file that they are from.
fn trained(header: &Header, seq_len: usize) -> Header {
    let mut config = header.config.with_weights(WeightType::F32);
    config.seq_len = seq_len;
    Header::new(Version::V1, config).with_tokens(header.tokens).with_template(header.template)
}

/// Describes the shape of a model in words.
pub fn describe(c: &Config) -> String {
    format!(
        "dim {}, hidden_dim {}, {} layers, {} heads, {} key/value heads, a vocabulary of {} and {} positions",
        c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len
    )
}

/// Describes what a training changes, if that is not all weights.
pub fn describe_trained<D: Backend>(model: &Llama<D>) -> String {
    let n: usize = model.trained().iter().map(|parameter| parameter.shape.size()).sum();
    let adapters = model.adapters.as_ref();
    adapters.map_or(String::new(), |of| format!("\nadapters of rank {}: {n} parameters to train", of.lora.rank))
}
