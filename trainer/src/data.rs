//! The data of a run: token shards that are there, or made from the stories that are there, or from generated ones.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::settings::Settings;
use crate::shards::{Shard, Shards};
use crate::teacher::Teacher;

/// Token shards with their tokenizer, and a teacher where there is one.
pub struct Data {
    shards: Shards,
    /// Contents of tokenizer.bin.
    pub tokenizer: Vec<u8>,
    pub teacher: Option<Teacher>,
    /// Text of the teacher.
    told: Vec<Shard>,
}

impl Data {
    /// Finds or makes the shards. `vocab_size` is that of the model.
    pub fn prepare(settings: &Settings, vocab_size: usize) -> anyhow::Result<Data> {
        let folder = find_shards(settings)?;
        let shards = Shards::open(&folder)?;
        ensure!(
            shards.vocab_size() == vocab_size,
            "the shards in {} have a vocabulary of {} tokens, the model of {vocab_size}: set vocab_size to {0}, or tokenise \
             the stories again",
            folder.display(),
            shards.vocab_size()
        );
        let tokenizer = std::fs::read(shards.tokenizer()).with_context(|| shards.tokenizer().display().to_string())?;
        let teacher = settings.teacher.as_deref();
        let teacher = teacher.map(|path| Teacher::open(path, vocab_size, settings.max_seq_len, &tokenizer));
        let teacher = teacher.transpose()?;
        let told = match &teacher {
            Some(teacher) => {
                teacher.stories(&settings.out_dir.join("teacher"), settings.teacher_stories, settings.seed)?
            }
            None => Vec::new(),
        };
        Ok(Data { shards, tokenizer, teacher, told })
    }

    /// Shards to train on.
    pub fn train(&self) -> Vec<&Shard> {
        self.shards.train().iter().chain(&self.told).collect()
    }

    /// Shards to evaluate on.
    pub fn valid(&self) -> Vec<&Shard> {
        vec![self.shards.valid()]
    }

    /// Entropy of single tokens of the validation split, in nats: the loss of the best model that looks at no context.
    pub fn unigram_entropy(&self) -> anyhow::Result<f64> {
        let mut tokens = vec![0; self.shards.valid().len()];
        self.shards.valid().read(0, &mut tokens)?;
        let mut counts = vec![0u64; self.shards.vocab_size()];
        tokens.iter().for_each(|&token| counts[token as usize] += 1);
        let shares = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / tokens.len() as f64);
        Ok(-shares.map(|share| share * share.ln()).sum::<f64>())
    }
}
