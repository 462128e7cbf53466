//! A model to learn from: the student learns its predictions at each position of the text, and the
//! stories that it tells.
//!
//! The trainer's own forward pass computes the predictions, many sequences at once: a step with a
//! teacher of the same size takes 1.2 times as long as one without. With infer-core, which is made
//! for one sequence, it took twice as long. infer-core tells the stories.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::{BOS, MappedModel, Model, Sampler};
use rayon::prelude::*;

use crate::data::batches::mix;
use crate::data::shards::{Shard, sha256, token_bytes};
use crate::data::tokenizer::TokenizerFile;
use crate::io::files::{open_model, remove_unfinished, write_whole};
use crate::io::inference::generate;
use crate::report::bar;
use crate::report::output::note;

/// Stories per file of sampled text. An interrupt loses at most as many.
const STORIES_PER_SHARD: usize = 1000;

/// The model file of a teacher.
pub struct Teacher {
    path: PathBuf,
    file: MappedModel,
}

impl Teacher {
    /// Opens a model that is to read sequences of `length` tokens.
    ///
    /// # Errors
    /// The file is no model, or the model has fewer positions.
    pub fn open(path: &Path, length: usize) -> anyhow::Result<Teacher> {
        let teacher = Teacher { path: path.to_path_buf(), file: open_model(path).with_context(|| name(path))? };
        let positions = teacher.model()?.config().seq_len;
        ensure!(
            positions >= length,
            "{} reads {positions} positions, the sequences have {length}: give --max-seq-len {positions}",
            name(path)
        );
        Ok(teacher)
    }

    /// The tokenizer that the teacher was trained with.
    ///
    /// # Errors
    /// As [`TokenizerFile::of_model`].
    pub fn tokenizer(&self, given: Option<&TokenizerFile>) -> anyhow::Result<TokenizerFile> {
        TokenizerFile::of_model(&self.path, self.model()?.config().vocab_size, given)
    }

    /// The model.
    ///
    /// # Errors
    /// The file is no longer the one that was opened.
    pub fn model(&self) -> anyhow::Result<Model<'_>> {
        self.file.model().with_context(|| name(&self.path))
    }

    /// Lets the teacher tell `n` stories, as shards in `folder`. The stories depend on the model
    /// and the seed alone; shards that are there already are used as they are.
    ///
    /// # Errors
    /// A file cannot be written or read.
    pub fn stories(&self, folder: &Path, n: usize, seed: u64) -> anyhow::Result<Vec<Shard>> {
        let model = self.model()?;
        let vocab_size = model.config().vocab_size;
        let token_bytes = token_bytes(vocab_size);
        let folder = folder.join(format!("{}-{seed}", &sha256(self.file.bytes())[..16]));
        if folder.exists() {
            remove_unfinished(&folder)?;
        }
        let progress = bar::new(n as u64, "{pos}/{len} stories of the teacher, {eta} left");
        let mut shards = Vec::new();
        for from in (0..n).step_by(STORIES_PER_SHARD) {
            let to = (from + STORIES_PER_SHARD).min(n);
            let path = folder.join(format!("stories-{from}-{to}.bin"));
            if !is_whole(&path, token_bytes, vocab_size) {
                let stories = (from..to).into_par_iter().map(|i| {
                    let sampler = Sampler::new(1.0, 1.0, mix(&[seed, i as u64]).max(1))?;
                    let story = generate(model, vec![BOS], model.config().seq_len, sampler)?;
                    progress.inc(1);
                    anyhow::Ok(story.iter().flat_map(|t| t.to_le_bytes()[..token_bytes].to_vec()).collect::<Vec<u8>>())
                });
                let stories = stories.collect::<anyhow::Result<Vec<_>>>().with_context(|| name(&self.path))?;
                let bytes = stories.concat();
                write_whole(&checksum_path(&path), |out| Ok(write!(out, "{}", crc32c::crc32c(&bytes))?))?;
                write_whole(&path, |out| Ok(out.write_all(&bytes)?))?;
            }
            progress.set_position(to as u64);
            shards.push(Shard::open_file(path, token_bytes, vocab_size)?);
        }
        progress.finish_and_clear();
        Ok(shards)
    }
}

/// Whether a file of sampled text exists and has the bytes that were written. Earlier versions
/// wrote no checksum: then any bytes will do.
fn is_whole(path: &Path, token_bytes: usize, vocab_size: usize) -> bool {
    let noted = std::fs::read_to_string(checksum_path(path)).ok().and_then(|text| text.parse().ok());
    let open = || Shard::open_file(path.into(), token_bytes, vocab_size)?.check(noted);
    match open() {
        Ok(()) => true,
        Err(e) => {
            if path.exists() {
                note(format!("{e:#}: its stories are told again"));
            }
            false
        }
    }
}

fn checksum_path(path: &Path) -> PathBuf {
    path.with_extension("crc32c")
}

fn name(path: &Path) -> String {
    format!("teacher {}", path.display())
}
