//! Finds the data of a run: token shards, or stories to make shards of, or generated stories.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::data::pretokenize::{self, Job};
use crate::data::separator::SEPARATOR;
use crate::data::shards::{Meta, Shard, Shards, read_meta, warn_if_lopsided};
use crate::data::tokenizer::TokenizerFile;
use crate::data::vocab::{self, Vocabulary, Words};
use crate::data::{corpus, generated, split};
use crate::io::checkpoint::Checkpoint;
use crate::io::files::{SETTINGS, TOKENIZER, TOKENIZER_JSON, folder_of, write_whole};
use crate::report::output::say;
use crate::train::settings::{InitFrom, Settings, VocabSource};
use crate::train::teacher::Teacher;

/// Number of stories in the generated corpus.
const GENERATED_STORIES: usize = 10_000;

/// Token shards with their tokenizer, and the teacher of the run, if it has one.
pub struct Stories {
    /// The folder of the shards.
    pub folder: PathBuf,
    shards: Shards,
    /// The model to learn from.
    pub teacher: Option<Teacher>,
    /// Shards of the stories that the teacher has told.
    told: Vec<Shard>,
}

impl Stories {
    /// Finds or makes the shards. `given` is the tokenizer that the settings name, `own` that of
    /// the weights to start from.
    ///
    /// # Errors
    /// A file cannot be read or written, or shards, weights, teacher and settings have different
    /// vocabularies.
    pub fn prepare(
        settings: &Settings,
        given: Option<TokenizerFile>,
        own: Option<TokenizerFile>,
    ) -> anyhow::Result<Stories> {
        let teacher = settings.teacher.as_deref().map(|path| Teacher::open(path, settings.max_seq_len)).transpose()?;
        let teachers = teacher.as_ref().map(|teacher| teacher.tokenizer(given.as_ref())).transpose()?;
        if let (Some(given), VocabSource::Llama2) = (&given, &settings.vocab_source) {
            let n = given.vocab_size();
            ensure!(n == 32_000, "vocab_source llama2 has 32,000 tokens, but {} has {n}", given.path.display());
        }
        let known = agreed([own, teachers, given], settings.vocab_size)?;
        let (folder, shards) = find_shards(settings, known.as_ref())?;
        check_vocabulary(settings, &folder, &shards, known.as_ref())?;
        warn_if_lopsided(
            shards.valid().n_tokens() as u64,
            shards.train().iter().map(|shard| shard.n_tokens() as u64).sum(),
        );
        let told = match &teacher {
            Some(teacher) => {
                teacher.stories(&settings.out_dir.join("teacher"), settings.teacher_stories, settings.seed)?
            }
            None => Vec::new(),
        };
        Ok(Stories { folder, shards, teacher, told })
    }

    /// The tokenizer of the shards, which is also that of the model and of the teacher.
    pub fn tokenizer(&self) -> &TokenizerFile {
        self.shards.tokenizer()
    }

    /// The shards to train on.
    pub fn train(&self) -> Vec<&Shard> {
        self.shards.train().iter().chain(&self.told).collect()
    }

    /// The shards to evaluate on.
    pub fn valid(&self) -> Vec<&Shard> {
        vec![self.shards.valid()]
    }

    /// Entropy of single tokens of the validation split, in nats: the loss of the best model that
    /// ignores the context.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn unigram_entropy(&self) -> anyhow::Result<f64> {
        let mut tokens = vec![0; self.shards.valid().n_tokens()];
        self.shards.valid().read(0, &mut tokens)?;
        let mut counts = vec![0u64; self.shards.vocab_size()];
        tokens.iter().for_each(|&token| counts[token as usize] += 1);
        let shares = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / tokens.len() as f64);
        Ok(-shares.map(|share| share * share.ln()).sum::<f64>())
    }
}

/// Checks that the files have one vocabulary of the size `vocab_size`, and returns the first.
fn agreed<const N: usize>(
    files: [Option<TokenizerFile>; N],
    vocab_size: Option<usize>,
) -> anyhow::Result<Option<TokenizerFile>> {
    let mut files = files.into_iter().flatten();
    let Some(first) = files.next() else { return Ok(None) };
    if let Some(wanted) = vocab_size {
        ensure!(
            wanted == first.vocab_size(),
            "--vocab-size is {wanted}, but the tokenizer {} has {} tokens: leave out --vocab-size, or give that number",
            first.path.display(),
            first.vocab_size()
        );
    }
    for other in files {
        ensure!(
            first.means_the_same(&other),
            "the tokenizers {} ({} tokens) and {} ({} tokens) differ: weights to start from, teacher and --tokenizer must \
             have the same vocabulary",
            first.path.display(),
            first.vocab_size(),
            other.path.display(),
            other.vocab_size()
        );
    }
    Ok(Some(first))
}

/// Checks that the shards have the vocabulary `known` and the size that the settings ask for.
fn check_vocabulary(
    settings: &Settings,
    folder: &Path,
    shards: &Shards,
    known: Option<&TokenizerFile>,
) -> anyhow::Result<()> {
    let has = shards.vocab_size();
    if let Some(known) = known {
        // Weights and a teacher fix the vocabulary: then leaving out --tokenizer does not help.
        let is_choice = settings.init_from == InitFrom::Scratch && settings.teacher.is_none();
        ensure!(
            known.means_the_same(shards.tokenizer()),
            "the shards in {} have another vocabulary ({has} tokens) than {} ({} tokens): {}give stories with --data, or \
             shards made with `trainer pretokenize --tokenizer {}`",
            folder.display(),
            known.path.display(),
            known.vocab_size(),
            if is_choice { "leave out --tokenizer, " } else { "" },
            known.path.display(),
        );
    }
    let wanted = settings.vocab_size.unwrap_or(has);
    ensure!(
        wanted == has,
        "the shards in {} have a vocabulary of {has} tokens, --vocab-size is {wanted}: leave out --vocab-size, or give \
         stories with --data",
        folder.display()
    );
    Ok(())
}

/// Opens the folder of token shards. If there are none, makes them.
fn find_shards(settings: &Settings, known: Option<&TokenizerFile>) -> anyhow::Result<(PathBuf, Shards)> {
    let folder = match &settings.data {
        Some(path) => path.clone(),
        None if settings.init_from == InitFrom::Resume => data_of_run(&settings.out_dir)?.with_context(|| {
            format!(
                "no {SETTINGS} in {} says what the run was trained on: give its data with --data, or its settings with \
                 --config",
                settings.out_dir.display()
            )
        })?,
        None => default_shards(settings.vocab_size.or(known.map(TokenizerFile::vocab_size)))?,
    };
    if Shards::are_in(&folder)? {
        for (flag, is_given) in [("--valid", settings.valid.is_some()), ("--separator", settings.separator.is_some())] {
            ensure!(
                !is_given,
                "the token shards in {} are made and split already: leave out {flag}, or give stories with --data",
                folder.display()
            );
        }
        say(format!("data: the token shards in {}", folder.display()));
        let shards = Shards::open(&folder, known)?;
        return Ok((folder, shards));
    }
    let stories = match &settings.data {
        None if settings.init_from != InitFrom::Resume && Path::new(corpus::DEFAULT).exists() => corpus::DEFAULT.into(),
        None if settings.init_from != InitFrom::Resume => generate(settings)?,
        _ => {
            ensure!(
                folder.exists(),
                "there is no data at {}: give stories or token shards with --data",
                folder.display()
            );
            folder
        }
    };
    let folder = tokenise(settings, &stories, known)?;
    let shards = Shards::open(&folder, None)?;
    Ok((folder, shards))
}

/// The shards that a run was trained on. `path` is its out_dir, one of its checkpoints, or a model
/// file in out_dir. `None` if no settings of a run are there.
///
/// # Errors
/// The settings cannot be read.
pub fn data_of_run(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    let out_dir = match path {
        file if file.is_file() => folder_of(file).to_path_buf(),
        checkpoint if Checkpoint::is_at(checkpoint) => checkpoint.join("../.."),
        out_dir => out_dir.to_path_buf(),
    };
    let settings = out_dir.join(SETTINGS);
    if !settings.is_file() {
        return Ok(None);
    }
    let in_file = || settings.display().to_string();
    let table: toml::Table = std::fs::read_to_string(&settings)?.parse().with_context(in_file)?;
    ensure!(
        !table.contains_key("chats"),
        "{} was taught on chats, not on shards: trainer --config {} --eval-only gives its loss on those held out",
        path.display(),
        settings.display()
    );
    Ok(table.get("data").and_then(|data| data.as_str()).map(PathBuf::from))
}

/// The folder in data/ with shards of a vocabulary of this size. Without a size, any folder of
/// shards there will do, if it is the only one.
fn default_shards(vocab_size: Option<usize>) -> anyhow::Result<PathBuf> {
    let usual = corpus::default_folder(vocab_size.unwrap_or(vocab::SIZE));
    if vocab_size.is_some() || Shards::are_in(&usual)? {
        return Ok(usual);
    }
    let mut found = Vec::new();
    for entry in Path::new("data").read_dir().into_iter().flatten() {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tok")) && Shards::are_in(&path)? {
            found.push(path);
        }
    }
    found.sort();
    match &found[..] {
        [] => Ok(usual),
        [one] => Ok(one.clone()),
        several => bail!("there are several folders of token shards, {}: name one with --data", corpus::list(several)),
    }
}

/// Makes token shards of stories in out_dir, which may have shards of an earlier try.
fn tokenise(settings: &Settings, stories: &Path, known: Option<&TokenizerFile>) -> anyhow::Result<PathBuf> {
    // An evaluation must not replace the shards of the run that it evaluates.
    let folder = settings.out_dir.join(if settings.eval_only { "eval-tokens" } else { "tokens" });
    say(format!("data: the stories in {}, as token shards in {}", stories.display(), folder.display()));
    let corpus = [stories.to_path_buf()];
    let valid: Vec<PathBuf> = settings.valid.clone().into_iter().collect();
    let separator = settings.separator.clone().unwrap_or_default();
    let plan = split::plan(&corpus, &valid, &separator, pretokenize::SHARD_MB.get() << 20)?;
    say(format!("split: {}", plan.chosen));
    let meta = |tokenizer: &TokenizerFile| Meta::new(tokenizer, separator.clone(), plan.shards.clone());
    let tokenizer = match known {
        Some(known) => known.clone(),
        None => match trained_before(&folder, settings.vocab_size, meta)? {
            Some(there) => there,
            None => train_vocabulary(settings, &corpus, &folder)?,
        },
    };
    let job = Job { meta: meta(&tokenizer), tokenizer, replace: true };
    if settings.init_from == InitFrom::Resume && !settings.eval_only {
        // A run that goes on must not replace the shards that it was trained on.
        ensure!(
            read_meta(&folder)?.is_none_or(|there| there.makes_the_same(&job.meta)),
            "{} has the shards of this run, which {} would replace: leave out --data to go on with them, or make others \
             with `trainer pretokenize {1} --tokenizer {} --out FOLDER` and give that folder with --data",
            folder.display(),
            stories.display(),
            folder.join(TOKENIZER).display()
        );
    }
    pretokenize::make(&job, &folder)?;
    Ok(folder)
}

/// The vocabulary that an earlier try has trained on the same corpus.
fn trained_before(
    folder: &Path,
    vocab_size: Option<usize>,
    meta: impl Fn(&TokenizerFile) -> Meta,
) -> anyhow::Result<Option<TokenizerFile>> {
    let (path, trained) = (folder.join(TOKENIZER), folder.join(TOKENIZER_JSON));
    let (Ok(Some(there)), Ok(tokenizer), true) = (read_meta(folder), TokenizerFile::open(&path), trained.exists())
    else {
        return Ok(None);
    };
    let fits = tokenizer.vocab_size() == vocab_size.unwrap_or(vocab::SIZE) && there.makes_the_same(&meta(&tokenizer));
    Ok(Some(tokenizer).filter(|_| fits))
}

/// Trains a vocabulary of the size in the settings, or of about [`vocab::SIZE`] tokens.
fn train_vocabulary(settings: &Settings, corpus: &[PathBuf], folder: &Path) -> anyhow::Result<TokenizerFile> {
    let separator = settings.separator.clone().unwrap_or_default();
    let words = Words::count(corpus, settings.valid.as_slice(), &separator, vocab::MAX_MB)?;
    let vocabulary = Vocabulary::train(&words.counts, settings.vocab_size, vocab::COVERAGE)?;
    let why = match (settings.vocab_size, vocabulary.size()) {
        (None, n) if n < vocab::SIZE => ", which is all that this text gives",
        (None, n) if n > vocab::SIZE => ", for all its characters",
        _ => "",
    };
    say(format!("vocabulary: {}, from {}{why}", vocabulary.describe(), words.read));
    vocabulary.write(folder)?;
    TokenizerFile::open(&folder.join(TOKENIZER))
}

/// Writes the generated corpus, unless an earlier run has written it.
fn generate(settings: &Settings) -> anyhow::Result<PathBuf> {
    for (flag, is_given) in [("--valid", settings.valid.is_some()), ("--separator", settings.separator.is_some())] {
        ensure!(!is_given, "{flag} is for stories of your own: give them with --data");
    }
    let path = settings.out_dir.join(format!("generated-{}.txt", settings.seed));
    say(format!("data: no stories in {}, so they are generated: {}", corpus::DEFAULT, path.display()));
    if !path.exists() {
        let stories = generated::stories(settings.seed, GENERATED_STORIES);
        let text = stories.map(|story| story + "\n" + SEPARATOR + "\n").collect::<String>();
        write_whole(&path, |out| Ok(out.write_all(text.as_bytes())?))?;
    }
    Ok(path)
}
