//! The session file: a conversation with its KV cache, so that it goes on as if it had not stopped.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use infer_core::{HASH_START, hash_bytes};
use infer_text::{BESIDE, Template};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::file::{self, DAMAGED};
use super::talker::Talker;
use super::turns::Kept;
use crate::args::Kv;
use crate::note::note;
use crate::session::ModelFiles;
use crate::source::{folder_of, read};
use crate::unfinished;

/// Changes with the layout of the file and of the KV cache.
const VERSION: u32 = 1;

/// Writes a session file, and reads it.
pub struct Keeper {
    path: PathBuf,
    owner: Owner,
}

/// What a session file belongs to. Hashes are FNV-1a in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Owner {
    version: u32,
    model: String,
    tokenizer: String,
    template: String,
    kv: String,
}

/// The JSON object.
#[derive(Serialize, Deserialize)]
struct Contents {
    #[serde(flatten)]
    owner: Owner,
    /// The state of the random numbers.
    rng: u64,
    conversation: Kept,
}

impl Keeper {
    pub fn new(path: &Path, files: &ModelFiles, template: &Template, kv: Kv) -> anyhow::Result<Keeper> {
        let hex = |bytes: &[u8]| format!("{:016x}", hash_bytes(HASH_START, bytes));
        let template = match template.name() {
            BESIDE => format!("{BESIDE} {}", hex(template.jinja_source().as_bytes())),
            name => name.to_owned(),
        };
        let kv = match kv {
            Kv::F32 => "f32",
            Kv::Int8 => "int8",
        };
        let (model, tokenizer) = (format!("{:016x}", files.checksum()), hex(files.tokenizer_bytes()));
        Ok(Keeper { path: path.into(), owner: Owner { version: VERSION, model, tokenizer, template, kv: kv.into() } })
    }

    /// Takes up the conversation of the file. Returns false if there is none yet. `random` takes up
    /// the random numbers too.
    pub fn resume(&self, talker: &mut Talker<'_>, random: bool) -> anyhow::Result<bool> {
        if !self.path.exists() {
            return Ok(false);
        }
        let name = || format!("session {}", self.path.display());
        let file = read(&self.path).with_context(name)?;
        self.take_up(&file, talker, random).with_context(name)?;
        note(format!("the conversation goes on behind turn {}", talker.turns.len()))?;
        Ok(true)
    }

    fn take_up(&self, file: &[u8], talker: &mut Talker<'_>, random: bool) -> anyhow::Result<()> {
        let (json, kv) = file::parts(file)?;
        // First who it belongs to: another version may have other fields.
        let owner: Owner = serde_json::from_slice(json).context(DAMAGED)?;
        self.check_owner(&owner)?;
        let Contents { rng, conversation, .. } = serde_json::from_slice(json).context(DAMAGED)?;

        let cached = conversation.cached;
        let tokens = conversation.tokens.get(..cached).context(DAMAGED)?.to_vec();
        talker.turns.take_up(conversation)?;
        if cached <= talker.context {
            file::load(kv, |load| talker.session.resume(&tokens, load))?;
        } else {
            talker.turns.set_cached(0); // the context is smaller now: what is kept is read again
        }
        if random {
            talker.session.sampler.set_rng(rng).context(DAMAGED)?;
        }
        Ok(())
    }

    /// Refuses the file of another model, tokenizer, template or KV type.
    fn check_owner(&self, file: &Owner) -> anyhow::Result<()> {
        let own = &self.owner;
        if file.version != own.version {
            bail!(
                "it has the layout {}, and this program reads {}: take the program that wrote it",
                file.version,
                own.version
            );
        }
        let what = [
            ("model", &file.model, &own.model),
            ("tokenizer", &file.tokenizer, &own.tokenizer),
            ("chat template", &file.template, &own.template),
            ("type of the KV cache", &file.kv, &own.kv),
        ];
        match what.iter().find(|(_, file, own)| file != own) {
            None => Ok(()),
            Some((what, file, own)) => {
                bail!("it belongs to another {what} ({file}, here {own}): take that, or give another --session")
            }
        }
    }

    /// Writes the file, whole or not at all.
    pub fn store(&self, talker: &mut Talker<'_>) -> anyhow::Result<()> {
        let name = || format!("session {}", self.path.display());
        let mut temporary = NamedTempFile::new_in(folder_of(&self.path)).with_context(name)?;
        let _unfinished = unfinished::remember(temporary.path());
        self.write(&mut temporary, talker).with_context(name)?;
        temporary.persist(&self.path).with_context(name)?;
        Ok(())
    }

    fn write(&self, out: &mut impl Write, talker: &mut Talker<'_>) -> anyhow::Result<()> {
        let conversation = talker.turns.keep();
        let cached = conversation.cached;
        let contents = Contents { owner: self.owner.clone(), rng: talker.session.sampler.rng(), conversation };
        let json = serde_json::to_vec(&contents)?;
        file::write(out, &json, |out| talker.session.save(cached, |bytes| out.write_all(bytes)))
    }
}
