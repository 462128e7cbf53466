//! The file run.postcard: the state of a run, and checksums.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use crc32c::crc32c;
use infer_core::Config;
use infer_core::format::{Header, Version};
use serde::{Deserialize, Serialize};

use crate::io::files::{TOKENIZER, map};
use crate::io::lora::Lora;
use crate::io::loss_scale::LossScale;
use crate::io::vocabulary::Vocabulary;

/// Weights and moments.
pub const TENSORS: &str = "tensors.safetensors";

/// Values of the format: without checksums, with them, with [`More`] between both, and with a
/// [`LossScale`] behind that. A run that needs no more is written as before.
pub(super) const UNCHECKED: u32 = 2;
const CHECKED: u32 = 3;
const MORE: u32 = 4;
const FORMAT: u32 = 5;

/// The state of a run, except its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub(super) format: u32,
    /// dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
    pub(super) shape: [usize; 7],
    pub(super) shared_classifier: bool,
    /// Steps done.
    pub iter: u64,
    /// Sequences seen so far: also the number of the next one in the order of the data.
    pub sequences: u64,
    /// Seconds spent in steps, over all sessions.
    pub seconds: f64,
    /// Lowest validation loss so far, in nats per token.
    pub best_loss: f64,
    /// The step of the last evaluation. An interrupted run evaluates its last step when it goes on.
    pub evaluated: Option<u64>,
    /// The settings that the order of the data depends on.
    pub order: Order,
    /// The model's header, if llama2.c's header cannot say all of it.
    #[serde(skip)]
    pub(super) header: Option<Header>,
    /// The adapters that are trained, and the checksum of the weights under them.
    #[serde(skip)]
    pub lora: Option<(Lora, u32)>,
    /// The source of the chat template, if it is none of those with a name.
    #[serde(skip)]
    pub template: Option<String>,
    /// The vocabulary is a tokenizer.json.
    #[serde(skip)]
    pub is_json: bool,
    /// The loss scale of a training in float16.
    #[serde(skip)]
    pub loss_scale: Option<LossScale>,
}

/// What a run may have since format 4.
#[derive(Serialize, Deserialize)]
struct More {
    /// The header of the model as a file of version 1 has it, or nothing.
    header: Vec<u8>,
    lora: Option<(Lora, u32)>,
    template: Option<String>,
    is_json: bool,
    chats: u32,
}

/// The settings that the order of the data depends on. A run that resumes with other values sees
/// other data than it would have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Seed of the shuffling.
    pub seed: u64,
    /// Sequences per pass.
    pub batch_size: usize,
    /// Passes per step, those of all processes together.
    pub gradient_accumulation_steps: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Sequences of an epoch.
    pub epoch: u64,
    /// Checksum of the chats to train on.
    #[serde(skip)]
    pub chats: u32,
}

impl Order {
    /// Whether both orders take the same sequences in each step. They may cut a step into passes
    /// differently.
    pub fn is_same(&self, other: &Order) -> bool {
        let in_a_step = |of: &Order| of.batch_size as u128 * of.gradient_accumulation_steps as u128;
        let cut = Order { batch_size: 0, gradient_accumulation_steps: 0, ..*self };
        in_a_step(self) == in_a_step(other) && cut == Order { batch_size: 0, gradient_accumulation_steps: 0, ..*other }
    }

    /// The differences between this order and the one of `now`, in words.
    pub fn changes(&self, now: &Order) -> String {
        let number = |n: usize| n as u64;
        let values = [
            ("seed", self.seed, now.seed),
            ("batch_size", number(self.batch_size), number(now.batch_size)),
            (
                "gradient_accumulation_steps x processes",
                number(self.gradient_accumulation_steps),
                number(now.gradient_accumulation_steps),
            ),
            ("max_seq_len", number(self.length), number(now.length)),
            ("sequences in the training data", self.epoch, now.epoch),
            ("checksum of the chats", self.chats.into(), now.chats.into()),
        ];
        let changed = values.iter().filter(|(_, was, is)| was != is);
        changed.map(|(name, was, is)| format!("{name}: {was}, now {is}")).collect::<Vec<_>>().join("; ")
    }
}

impl Run {
    /// A run that has not begun.
    pub fn new(config: &Config, order: Order) -> Run {
        let Config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, .. } = *config;
        let header = Header::new(Version::V1, *config);
        Run {
            format: CHECKED,
            shape: [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len],
            shared_classifier: config.shared_classifier,
            iter: 0,
            sequences: 0,
            seconds: 0.0,
            best_loss: f64::INFINITY,
            evaluated: None,
            order,
            header: (!header.is_plain()).then_some(header),
            lora: None,
            template: None,
            is_json: false,
            loss_scale: None,
        }
    }

    /// The same for a model that brings special tokens and a chat template.
    pub fn with_header(self, header: &Header) -> Run {
        Run { header: (!header.is_plain()).then_some(*header), ..self }
    }

    /// Updates of the weights so far: steps that were not skipped.
    pub fn updates(&self) -> u64 {
        self.iter - self.loss_scale.map_or(0, |scale| scale.skipped)
    }

    /// Shape of the model.
    pub fn config(&self) -> Config {
        self.header().config
    }

    /// The model's header, of version 1.
    pub fn header(&self) -> Header {
        let [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len] = self.shape;
        let config = Config::new(dim, hidden_dim, n_layers, n_heads, vocab_size, seq_len).with_kv_heads(n_kv_heads);
        let config = if self.shared_classifier { config } else { config.with_own_classifier() };
        self.header.unwrap_or(Header::new(Version::V1, config))
    }

    /// The vocabulary of these bytes.
    pub fn vocabulary(&self, bytes: Vec<u8>) -> Vocabulary {
        if self.is_json { Vocabulary::Json(bytes) } else { Vocabulary::Bin(bytes) }
    }

    fn more(&self) -> anyhow::Result<Option<More>> {
        let Run { header, lora, template, is_json, order, loss_scale, .. } = self;
        let others = [header.is_some(), lora.is_some(), template.is_some(), loss_scale.is_some()];
        let is_there = others.contains(&true) || *is_json || order.chats != 0;
        let header = header.map(|header| header.to_bytes()).transpose()?.map_or(Vec::new(), Vec::from);
        let (template, chats) = (template.clone(), order.chats);
        Ok(is_there.then_some(More { header, lora: *lora, template, is_json: *is_json, chats }))
    }
}

/// CRC-32C of the large files of a checkpoint. Checkpoints of older trainers have no checksums.
#[derive(Clone, Copy)]
pub(super) struct Checksums {
    pub tensors: u32,
    pub tokenizer: u32,
}

impl Checksums {
    pub fn of(path: &Path) -> anyhow::Result<Checksums> {
        let checksum = |name: &str| anyhow::Ok(crc32c(&map(&path.join(name))?));
        Ok(Checksums { tensors: checksum(TENSORS)?, tokenizer: checksum(TOKENIZER)? })
    }
}

/// The bytes of run.postcard: the run, what more it has, the checksums of the other files, and the
/// checksum of all bytes before it, little endian.
pub(super) fn encode_run(run: &Run, checksums: Checksums) -> anyhow::Result<Vec<u8>> {
    let more = run.more()?;
    let format = match (&more, run.loss_scale) {
        (_, Some(_)) => FORMAT,
        (Some(_), None) => MORE,
        (None, None) => CHECKED,
    };
    let mut bytes = postcard::to_stdvec(&Run { format, ..run.clone() })?;
    if let Some(more) = more {
        bytes.extend(postcard::to_stdvec(&more)?);
    }
    if let Some(loss_scale) = run.loss_scale {
        bytes.extend(postcard::to_stdvec(&loss_scale)?);
    }
    bytes.extend(checksums.tensors.to_le_bytes());
    bytes.extend(checksums.tokenizer.to_le_bytes());
    bytes.extend(crc32c(&bytes).to_le_bytes());
    Ok(bytes)
}

pub(super) fn decode_run(bytes: &[u8]) -> anyhow::Result<(Run, Option<Checksums>)> {
    let (format, _) = postcard::take_from_bytes::<u32>(bytes)?;
    let (run, checksums) = match format {
        UNCHECKED => (bytes, None),
        CHECKED | MORE | FORMAT => {
            let (rest, checksum) = take_u32(bytes)?;
            ensure!(crc32c(rest) == checksum, "its checksum is wrong");
            let (rest, tokenizer) = take_u32(rest)?;
            let (run, tensors) = take_u32(rest)?;
            (run, Some(Checksums { tensors, tokenizer }))
        }
        other => bail!("it has format {other}, and this trainer reads {UNCHECKED} to {FORMAT}"),
    };
    let (mut run, mut rest) = postcard::take_from_bytes::<Run>(run)?;
    if format >= MORE {
        let more: More;
        (more, rest) = postcard::take_from_bytes(rest)?;
        let More { header, lora, template, is_json, chats } = more;
        run.header = (!header.is_empty()).then(|| Header::parse(&header)).transpose()?;
        (run.lora, run.template, run.is_json, run.order.chats) = (lora, template, is_json, chats);
    }
    if format == FORMAT {
        let loss_scale: LossScale;
        (loss_scale, rest) = postcard::take_from_bytes(rest)?;
        ensure!(loss_scale.skipped <= run.iter, "{} of {} steps were skipped", loss_scale.skipped, run.iter);
        run.loss_scale = Some(loss_scale);
    }
    ensure!(rest.is_empty(), "{} bytes follow the run", rest.len());
    Ok((Run { format: CHECKED, ..run }, checksums))
}

/// Splits off the last four bytes and reads them as a number.
fn take_u32(bytes: &[u8]) -> anyhow::Result<(&[u8], u32)> {
    let (rest, last) = bytes.split_last_chunk().context("it is cut short")?;
    Ok((rest, u32::from_le_bytes(*last)))
}
