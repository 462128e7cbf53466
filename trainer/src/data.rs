//! The data of a run: token shards that are there, or made from the stories that are there, or from generated ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::corpus::Separator;
use crate::files::write_whole;
use crate::settings::Settings;
use crate::shards::{Shard, Shards, read_meta};
use crate::teacher::Teacher;
use crate::{corpus, generated, pretokenize, vocab};

/// Stories of the generated corpus.
const GENERATED_STORIES: usize = 10_000;

/// Token shards with their tokenizer, and a teacher where there is one.
pub struct Data {
    /// Where the shards are.
    pub folder: PathBuf,
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
        let folder = find_shards(settings, vocab_size)?;
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
        Ok(Data { folder, shards, tokenizer, teacher, told })
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

/// The folder of token shards; makes them where there are none.
fn find_shards(settings: &Settings, vocab_size: usize) -> anyhow::Result<PathBuf> {
    let folder = settings.data.clone().unwrap_or_else(|| corpus::default_folder(vocab_size));
    if folder.is_dir() && read_meta(&folder)?.is_some() {
        ensure!(
            settings.valid.is_none(),
            "the token shards in {} have a validation split already: leave out --valid, or give stories with --data",
            folder.display()
        );
        println!("data: the token shards in {}", folder.display());
        return Ok(folder);
    }
    let stories = match &settings.data {
        Some(path) => {
            ensure!(path.exists(), "there is no data at {}: give token shards or stories with --data", path.display());
            path.clone()
        }
        None if Path::new(corpus::DEFAULT).exists() => corpus::DEFAULT.into(),
        None => generate(settings)?,
    };
    let tokens = settings.out_dir.join("tokens");
    println!("data: the stories in {}, as token shards in {}", stories.display(), tokens.display());
    let given = given_tokenizer(settings);
    if given.is_none() && !tokens.join("tokenizer.bin").exists() {
        vocab::run(&vocab::Args {
            corpus: vec![stories.clone()],
            vocab_size,
            out: Some(tokens.clone()),
            separator: Separator::default(),
            character_coverage: vocab::COVERAGE,
            max_mb: vocab::MAX_MB,
        })?;
    }
    pretokenize::run(&pretokenize::Args {
        corpus: vec![stories],
        valid: settings.valid.clone().into_iter().collect(),
        vocab_size: Some(vocab_size),
        out: Some(tokens.clone()),
        tokenizer: given,
        separator: Separator::default(),
        workers: None,
        shard_mb: pretokenize::SHARD_MB,
    })?;
    Ok(tokens)
}

/// The tokenizer that the settings ask for: by name, or beside the model that the run starts or learns from.
fn given_tokenizer(settings: &Settings) -> Option<PathBuf> {
    let beside = |model: &Path| Some(model.with_file_name("tokenizer.bin")).filter(|path| path.exists());
    let start = Some(Path::new(&settings.init_from)).filter(|path| path.is_file());
    settings.tokenizer.clone().or_else(|| beside(start?)).or_else(|| beside(settings.teacher.as_deref()?))
}

/// Writes the generated corpus.
fn generate(settings: &Settings) -> anyhow::Result<PathBuf> {
    let path = settings.out_dir.join("generated.txt");
    println!("data: no stories in {}, so they are generated: {}", corpus::DEFAULT, path.display());
    if !path.exists() {
        let stories = generated::stories(settings.seed, GENERATED_STORIES);
        let text = stories.map(|story| story + "\n" + corpus::SEPARATOR + "\n").collect::<String>();
        write_whole(&path, |out| Ok(out.write_all(text.as_bytes())?))?;
    }
    Ok(path)
}
