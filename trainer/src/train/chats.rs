//! The chats of a run: finds vocabulary and template, reads, splits and packs.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use infer_core::format::{Header, SpecialTokens, TemplateName};
use infer_text::{Template, TextTokenizer};

use crate::data::chats::Chats;
use crate::data::packed::Packed;
use crate::data::vocab::{self, Vocabulary as NewVocabulary, Words};
use crate::io::files::{TOKENIZER, TOKENIZER_JSON, folder_of};
use crate::io::inference::answer;
use crate::io::vocabulary::Vocabulary;
use crate::report::output::say;
use crate::train::settings::Settings;
use crate::train::start::Start;

/// The template of models that name none.
const DEFAULT_TEMPLATE: &str = "llama2";
/// Most tokens of the answer that each evaluation gives.
const ANSWER_LEN: usize = 64;

/// Chats to train on and to validate on, and what turns them into tokens.
pub struct ChatData {
    /// Contents of the vocabulary's file.
    pub vocabulary: Vocabulary,
    /// The file.
    pub path: PathBuf,
    /// The same vocabulary, to use.
    pub tokenizer: TextTokenizer,
    /// How a chat is written down.
    pub template: Template,
    /// The tokens that end an answer.
    pub stops: Vec<u32>,
    /// To train on.
    pub train: Packed,
    /// To validate on.
    pub valid: Packed,
}

impl ChatData {
    /// Reads the chats of the settings.
    ///
    /// # Errors
    /// A file cannot be read, a line is no chat, or vocabulary, template and model do not fit
    /// together.
    pub fn prepare(settings: &Settings, path: &Path, start: &Start) -> anyhow::Result<ChatData> {
        let mut train = Chats::read(path)?;
        let (valid, how) = match &settings.chats_valid {
            Some(path) => (Chats::read(path)?, format!("on {}", path.display())),
            None => {
                let (valid, how) = train.hold_out()?;
                (valid, format!("on {how}"))
            }
        };
        let (vocabulary, vocabulary_path) = vocabulary(settings, start, &train)?;
        let in_vocabulary = || format!("tokenizer {}", vocabulary_path.display());
        let header = start.header(settings)?;
        let tokenizer = open(&vocabulary, header.as_ref()).with_context(in_vocabulary)?;
        let has = header.map_or(tokenizer.vocab_size(), |header| header.config.vocab_size);
        if let Some(wanted) = settings.vocab_size {
            ensure!(
                wanted == has,
                "--vocab-size is {wanted}, but the vocabulary {} has {has} tokens: leave out --vocab-size",
                vocabulary_path.display()
            );
        }
        let template = template(settings, start)?;
        let stops = template.stops(&tokenizer).with_context(|| format!("chat template {}", template.name()))?;
        let pack = |chats: &Chats, seed| {
            let packed = Packed::new(chats.render(&template, &tokenizer)?, settings.max_seq_len, seed);
            packed.with_context(|| format!("chats {}", chats.path.display()))
        };
        let (train, valid) = (pack(&train, settings.seed)?, pack(&valid, 0)?);
        say(format!(
            "chats: {} to train on, with {} tokens of answers; validation {how}: {}; template {}",
            train.chats(),
            train.answers(),
            valid.chats(),
            template.name()
        ));
        for (what, packed) in [("training", &train), ("validation", &valid)] {
            if packed.cut + packed.dropped > 0 {
                say(format!(
                    "note: {what} chats are longer than {} tokens: {} cut behind an answer, {} left out",
                    settings.max_seq_len, packed.cut, packed.dropped
                ));
            }
        }
        Ok(ChatData { vocabulary, path: vocabulary_path, tokenizer, template, stops, train, valid })
    }

    /// The header of a model that was taught with these chats. A plain model with Llama 2's
    /// template stays plain: that template is what programs take when a model names none.
    ///
    /// # Errors
    /// More stop tokens than a header holds.
    pub fn header(&self, of: &Header) -> anyhow::Result<Header> {
        let tokens = SpecialTokens::new(of.tokens.bos(), &self.stops)?;
        let header = of.with_tokens(tokens);
        let name = self.template.name();
        let is_default = header.is_plain() && name == DEFAULT_TEMPLATE;
        Ok(if is_default { header } else { header.with_template(TemplateName::new(name)?) })
    }

    /// The question of the first chat that is held out, and the model's answer.
    ///
    /// # Errors
    /// A model whose logits are no numbers.
    pub fn sample(&self, model: infer_core::Model<'_>) -> anyhow::Result<String> {
        let chat = self.valid.chat(0);
        let n = chat.answer.iter().position(|answer| *answer).unwrap_or(0);
        let (question, steps) = (&chat.tokens[..n], (n + ANSWER_LEN).min(model.config().seq_len));
        let answer = answer(model, question, &self.stops, steps)?;
        let text = |tokens: &[u32]| {
            let spoken = tokens.iter().filter(|token| !self.tokenizer.bos().contains(token));
            let bytes = spoken.scan(0, |previous, &token| {
                Some(self.tokenizer.decode(std::mem::replace(previous, token), token).into_owned())
            });
            let bytes = bytes.collect::<Vec<_>>().concat();
            String::from_utf8_lossy(&bytes).replace(|c: char| c.is_control(), " ")
        };
        let end = if answer.stopped { "" } else { " …" };
        Ok(format!("a chat: {} -> {}{end}", text(question).trim(), text(&answer.tokens).trim()))
    }

    /// Bytes of text of each token.
    pub fn token_lengths(&self, vocab_size: usize) -> Vec<usize> {
        (0..vocab_size as u32).map(|token| self.tokenizer.decode(0, token).len()).collect()
    }
}

/// The vocabulary of the model to start from, or a given one; without either, one that is learned
/// from the chats.
fn vocabulary(settings: &Settings, start: &Start, chats: &Chats) -> anyhow::Result<(Vocabulary, PathBuf)> {
    if let Start::Resume(last) = start {
        return Ok((last.run.vocabulary(last.tokenizer.clone()), last.path.join(TOKENIZER)));
    }
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).with_context(|| format!("tokenizer {}", path.display()))?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        Ok((if is_json { Vocabulary::Json(bytes) } else { Vocabulary::Bin(bytes) }, path))
    };
    if let Some(given) = &settings.tokenizer {
        return read(given.clone());
    }
    if let Start::FineTune { path, .. } = start {
        let [bin, json] = [TOKENIZER, TOKENIZER_JSON].map(|name| path.with_file_name(name));
        ensure!(
            bin.exists() || json.exists(),
            "the model {} has no {TOKENIZER} or {TOKENIZER_JSON} beside it: give its own with --tokenizer, since with \
             another one its tokens mean nothing",
            path.display()
        );
        return read(if bin.exists() { bin } else { json });
    }
    let folder = settings.out_dir.join("tokens");
    let words = Words::of(chats.texts());
    let vocabulary = NewVocabulary::train(&words, settings.vocab_size, vocab::COVERAGE)?;
    say(format!("vocabulary: {}, from the chats", vocabulary.describe()));
    vocabulary.write(&folder)?;
    read(folder.join(TOKENIZER))
}

/// Opens a vocabulary for the model of this header; without a header, all of it.
fn open(vocabulary: &Vocabulary, header: Option<&Header>) -> anyhow::Result<TextTokenizer> {
    let tokenizer = match (vocabulary, header) {
        (Vocabulary::Bin(bytes), Some(header)) => TextTokenizer::from_bin(bytes.clone(), header)?,
        (Vocabulary::Bin(bytes), None) => TextTokenizer::whole_bin(bytes.clone())?,
        (Vocabulary::Json(bytes), Some(header)) => TextTokenizer::from_json(bytes, header)?,
        (Vocabulary::Json(bytes), None) => TextTokenizer::whole_json(bytes)?,
    };
    ensure!(
        tokenizer.spare_bytes() == 0,
        "it has more tokens than the model's {}: give the model's own with --tokenizer",
        tokenizer.vocab_size()
    );
    Ok(tokenizer)
}

/// The given template, or the model's, or Llama 2's.
fn template(settings: &Settings, start: &Start) -> anyhow::Result<Template> {
    if let Some(given) = &settings.template {
        return match Template::named(given) {
            Err(_) if Path::new(given).exists() => Template::file(Path::new(given)),
            named => named,
        };
    }
    let of_model = match start {
        Start::Scratch => None,
        Start::Resume(last) => match &last.run.template {
            Some(source) => Some(Template::jinja(source, None, None)?),
            None => Template::of(&last.run.header(), &last.path)?,
        },
        Start::FineTune { path, file } => Template::of(&file.model()?.header(), folder_of(path))?,
    };
    of_model.map_or_else(|| Template::named(DEFAULT_TEMPLATE), Ok)
}
