//! Finds the weights that a run starts from: random ones, a checkpoint, or a model file.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use infer_core::{Config, MappedModel, WeightType};

use crate::data::tokenizer::TokenizerFile;
use crate::io::checkpoint::{Checkpoint, Checkpoints, tensor_name};
use crate::io::files::{SETTINGS, TOKENIZER, open_model};
use crate::io::tensors::{Shape, shapes};
use crate::model::{AdamW, Backend, Llama};
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
                ensure!(
                    has == wants,
                    "the checkpoint {} has {}, but the settings ask for {}: resume with {}",
                    checkpoint.path.display(),
                    describe(&has),
                    describe(&wants),
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

    /// Shape of the model. Only random weights have the shape that the settings describe.
    ///
    /// # Errors
    /// The model file is no longer the one that was opened.
    pub fn config(&self, settings: &Settings) -> anyhow::Result<Config> {
        match self {
            Start::Scratch => Ok(settings.config()),
            Start::Resume(checkpoint) => Ok(checkpoint.run.config()),
            // As in llama2.c, the model gets as many positions as a training sequence has. No
            // weight depends on their number: rotary angles are computed.
            Start::FineTune { file, .. } => {
                let mut config = file.model()?.config().with_weights(WeightType::F32);
                config.seq_len = settings.max_seq_len;
                Ok(config)
            }
        }
    }

    /// The model and its optimiser, which has the moments of a checkpoint if there is one.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the device has no memory.
    pub fn into_model<D: Backend>(
        self,
        config: Config,
        device: &D,
        s: &Settings,
    ) -> anyhow::Result<(Llama<D>, AdamW<D>)> {
        let (model, moments) = match self {
            Start::Scratch => (Llama::init(config, device, s.seed)?, None),
            Start::FineTune { file, .. } => {
                let weights = Llama::from_model(&file.model()?, device)?.to_vecs();
                (Llama::from_slices(config, device, &weights)?, None)
            }
            Start::Resume(mut checkpoint) => {
                let mut take = |kind| {
                    let tensors = shapes(&config)?.into_iter().map(|Shape { name, layer, rows, cols }| {
                        checkpoint.take(&tensor_name(kind, name, layer), &[rows, cols])
                    });
                    tensors.collect::<anyhow::Result<Vec<_>>>()
                };
                let (weights, moments) = (take("weight")?, [take("moment1")?, take("moment2")?]);
                (Llama::from_slices(config, device, &weights)?, Some((moments, checkpoint.run.iter)))
            }
        };
        let mut optimizer = AdamW::new(&model, [s.beta1, s.beta2], s.weight_decay)?;
        if let Some(([moment1, moment2], iter)) = moments {
            optimizer.set_moments(&model, [&moment1, &moment2], iter as u32)?;
        }
        Ok((model, optimizer))
    }
}

/// Describes the shape of a model in words.
pub fn describe(c: &Config) -> String {
    format!(
        "dim {}, hidden_dim {}, {} layers, {} heads, {} key/value heads, a vocabulary of {} and {} positions",
        c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.seq_len
    )
}
