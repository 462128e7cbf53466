//! What a run learns from: stories or chats, cut into sequences.

use std::path::{Path, PathBuf};

use anyhow::Context;
use infer_core::Sampler;
use infer_core::format::Header;
use infer_text::BESIDE;

use crate::data::batches::{Batch, Batches};
use crate::data::packed::Packed;
use crate::data::tokenizer::TokenizerFile;
use crate::io::inference::Runnable;
use crate::io::vocabulary::Vocabulary;
use crate::io::weights::{FileVersion, Weights};
use crate::model::{self, IGNORED};
use crate::train::chats::ChatData;
use crate::train::settings::Settings;
use crate::train::sources::Stories;
use crate::train::start::Start;
use crate::train::teacher::Teacher;

/// Most positions of the story that each evaluation tells.
const SAMPLE_LEN: usize = 128;

/// The data of a run, with its vocabulary.
pub enum Corpus {
    /// Token shards of stories.
    Stories(Box<Stories>),
    /// Chats.
    Chats(Box<ChatData>),
}

impl Corpus {
    /// Finds or makes the data that the settings name.
    ///
    /// # Errors
    /// As [`Stories::prepare`] and [`ChatData::prepare`].
    pub fn prepare(settings: &Settings, start: &Start) -> anyhow::Result<Corpus> {
        if let Some(chats) = &settings.chats {
            return Ok(Corpus::Chats(Box::new(ChatData::prepare(settings, chats, start)?)));
        }
        let given = settings.tokenizer.as_deref().map(TokenizerFile::open).transpose()?;
        let own = start.tokenizer(given.as_ref())?;
        Ok(Corpus::Stories(Box::new(Stories::prepare(settings, given, own)?)))
    }

    /// Number of tokens of a new model.
    pub fn vocab_size(&self) -> usize {
        match self {
            Corpus::Stories(stories) => stories.tokenizer().vocab_size(),
            Corpus::Chats(chats) => chats.tokenizer.vocab_size(),
        }
    }

    /// The vocabulary's file.
    pub fn tokenizer_path(&self) -> &Path {
        match self {
            Corpus::Stories(stories) => &stories.tokenizer().path,
            Corpus::Chats(chats) => &chats.path,
        }
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> Vocabulary {
        match self {
            Corpus::Stories(stories) => Vocabulary::Bin(stories.tokenizer().bytes().to_vec()),
            Corpus::Chats(chats) => chats.vocabulary.clone(),
        }
    }

    /// Bytes of text of each token.
    ///
    /// # Errors
    /// As [`TokenizerFile::token_lengths`].
    pub fn token_lengths(&self, vocab_size: usize) -> anyhow::Result<Vec<usize>> {
        match self {
            Corpus::Stories(stories) => stories.tokenizer().token_lengths(),
            Corpus::Chats(chats) => Ok(chats.token_lengths(vocab_size)),
        }
    }

    /// The header of the model that learns this.
    ///
    /// # Errors
    /// As [`ChatData::header`].
    pub fn header(&self, of: &Header) -> anyhow::Result<Header> {
        match self {
            Corpus::Stories(_) => Ok(*of),
            Corpus::Chats(chats) => chats.header(of),
        }
    }

    /// The source of the chats' template, if it is none of those with a name.
    pub fn template(&self) -> Option<&str> {
        match self {
            Corpus::Chats(chats) if chats.template.name() == BESIDE => Some(chats.template.jinja_source()),
            _ => None,
        }
    }

    /// The tokens that end an answer; none of stories.
    pub fn stops(&self) -> &[u32] {
        match self {
            Corpus::Stories(_) => &[],
            Corpus::Chats(chats) => &chats.stops,
        }
    }

    /// The folder of the shards.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Corpus::Stories(stories) => Some(stories.folder.clone()),
            Corpus::Chats(_) => None,
        }
    }

    /// The model to learn from.
    pub fn teacher(&self) -> Option<&Teacher> {
        match self {
            Corpus::Stories(stories) => stories.teacher.as_ref(),
            Corpus::Chats(_) => None,
        }
    }

    /// The sequences to train on.
    ///
    /// # Errors
    /// As [`Batches::new`].
    pub fn train(&self, s: &Settings) -> anyhow::Result<Sequences<'_>> {
        match self {
            Corpus::Stories(stories) => {
                let batches = Batches::new(stories.train(), s.max_seq_len, s.seed, "--max-seq-len");
                Ok(Sequences::Stories(batches.context("training split")?))
            }
            Corpus::Chats(chats) => Ok(Sequences::Chats(&chats.train)),
        }
    }

    /// The sequences to validate on.
    ///
    /// # Errors
    /// As [`Batches::new`].
    pub fn valid(&self, s: &Settings) -> anyhow::Result<Sequences<'_>> {
        match self {
            Corpus::Stories(stories) => {
                let batches = Batches::new(stories.valid(), s.max_seq_len, s.seed, "--max-seq-len");
                Ok(Sequences::Stories(batches.context("validation split")?))
            }
            Corpus::Chats(chats) => Ok(Sequences::Chats(&chats.valid)),
        }
    }

    /// Entropy of single tokens to validate on, in nats: the loss of the best model that ignores
    /// the context.
    ///
    /// # Errors
    /// As [`Stories::unigram_entropy`].
    pub fn unigram_entropy(&self) -> anyhow::Result<f64> {
        match self {
            Corpus::Stories(stories) => stories.unigram_entropy(),
            Corpus::Chats(chats) => Ok(chats.valid.unigram_entropy()),
        }
    }

    /// What the model says now: a story, or the answer to a question that is held out.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub fn sample(&self, weights: &Weights, seed: u64) -> anyhow::Result<String> {
        match self {
            Corpus::Stories(stories) => {
                let runnable = Runnable::new(weights, stories.tokenizer().bytes().to_vec())?;
                let story = runnable.story("", SAMPLE_LEN, Sampler::new(1.0, 0.9, seed.max(1))?)?;
                Ok(format!("a story: {}", story.replace('\n', " ")))
            }
            Corpus::Chats(chats) => {
                let bytes = infer_core::ModelBytes::copy(&weights.to_file(FileVersion::V1)?)?;
                chats.sample(bytes.model()?)
            }
        }
    }
}

/// Sequences of stories, or windows of chats.
pub enum Sequences<'a> {
    /// Cut from shards.
    Stories(Batches<'a>),
    /// Packed.
    Chats(&'a Packed),
}

impl Sequences<'_> {
    /// Number of sequences in one epoch.
    pub fn number(&self) -> u64 {
        match self {
            Sequences::Stories(batches) => batches.sequences(),
            Sequences::Chats(packed) => packed.sequences(),
        }
    }

    /// A checksum of chats, 0 for stories.
    pub fn checksum(&self) -> u32 {
        match self {
            Sequences::Stories(_) => 0,
            Sequences::Chats(packed) => packed.checksum(),
        }
    }

    /// How full the windows of chats are, in words.
    pub fn describe_fullness(&self) -> String {
        match self {
            Sequences::Stories(_) => String::new(),
            Sequences::Chats(packed) => format!(" ({:.0}% full)", 100.0 * packed.fullness()),
        }
    }

    /// As [`Batches::training`].
    ///
    /// # Errors
    /// As [`Batches::training`].
    pub fn training(&mut self, first: u64, n: usize) -> anyhow::Result<Batch> {
        match self {
            Sequences::Stories(batches) => batches.training(first, n),
            Sequences::Chats(packed) => Ok(packed.training(first, n)),
        }
    }

    /// As [`Batches::fixed`].
    ///
    /// # Errors
    /// As [`Batches::fixed`].
    pub fn fixed(&self, i: usize, batches: usize, n: usize) -> anyhow::Result<Option<Batch>> {
        match self {
            Sequences::Stories(stories) => stories.fixed(i, batches, n),
            Sequences::Chats(packed) => Ok(packed.fixed(i, batches, n)),
        }
    }
}

impl Batch {
    /// Number of positions that count.
    pub fn counted(&self) -> usize {
        self.y.iter().filter(|target| **target != IGNORED).count()
    }
}

/// The batch as the model takes it, in windows of so many tokens.
pub fn for_model(batch: &Batch, length: usize) -> model::Batch<'_> {
    let Batch { x: tokens, y: targets, starts } = batch;
    model::Batch { tokens, targets, starts: starts.as_deref(), sequences: tokens.len() / length, length }
}
