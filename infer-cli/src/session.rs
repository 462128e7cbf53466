//! Opened files, and the memory of one conversation with a model.

use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use infer_core::{
    Config, Engine, HotBuffers, IndexEntry, Kernels, KvBuffers, KvType, Limits, MergeSlot, Model, Plan, ProbIndex,
    Sampler, State, Tokenizer, begin, classify, penalize, step,
};

use crate::args::FullSampling;
use crate::note::note;
use crate::pool::{Pool, default_threads};
use crate::source::Source;

/// Prompts are read this many tokens at a time, so that the weights are read once for all of them.
pub const BATCH: usize = 32;

/// A mistake on the command line, as opposed to one in a file: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A model and its tokenizer.
pub struct ModelFiles {
    model: Source,
    tokenizer: Source,
}

impl ModelFiles {
    /// Opens a model, by default the embedded one, and its tokenizer: the given one, or
    /// [`find_tokenizer`].
    pub fn open(model: Option<&Path>, tokenizer: Option<&Path>) -> anyhow::Result<ModelFiles> {
        let path = model;
        let model = Source::model(path)?;
        Model::from_bytes(&model).with_context(|| model.name.clone())?; // before the tokenizer is asked for
        let found = match (path, tokenizer) {
            (Some(model), None) => Some(find_tokenizer(model)?),
            _ => None,
        };
        let tokenizer = Source::tokenizer(tokenizer.or(found.as_deref()))?;
        Ok(ModelFiles { model, tokenizer })
    }

    pub fn model(&self) -> anyhow::Result<Model<'_>> {
        Model::from_bytes(&self.model).with_context(|| self.model.name.clone())
    }

    /// What messages call the model.
    pub fn model_name(&self) -> &str {
        &self.model.name
    }

    /// Whether the model is the one in this program.
    pub fn is_embedded(&self) -> bool {
        self.model.is_embedded()
    }

    /// Warns if somebody wrote to the model while it was in use.
    pub fn warn_if_changed(&self) -> io::Result<()> {
        if self.model.was_changed() {
            let name = &self.model.name;
            writeln!(
                io::stderr(),
                "warning: {name} was changed while it was in use: the result may be of neither version"
            )?;
        }
        Ok(())
    }

    /// FNV-1a (64 bits) of the model file.
    pub fn checksum(&self) -> u64 {
        infer_core::hash_bytes(infer_core::HASH_START, &self.model)
    }

    pub fn tokenizer(&self) -> anyhow::Result<OwnedTokenizer<'_>> {
        let vocab_size = self.model()?.config().vocab_size;
        let tokenizer =
            OwnedTokenizer::new(&self.tokenizer, vocab_size).with_context(|| self.tokenizer.name.clone())?;
        let spare = self.tokenizer.len() - tokenizer.get().file_bytes();
        if spare > 0 {
            writeln!(
                io::stderr(),
                "warning: {} goes on for {spare} bytes after token {}, the model's last: it may belong to \
                 another model",
                self.tokenizer.name,
                vocab_size - 1
            )?;
        }
        Ok(tokenizer)
    }
}

/// What a model's tokenizer is called.
pub const TOKENIZER: &str = "tokenizer.bin";

/// The tokenizer of this model: beside it, or, as llama2.c has it, in the current folder.
pub fn find_tokenizer(model: &Path) -> anyhow::Result<PathBuf> {
    let (beside, here) = (model.with_file_name(TOKENIZER), Path::new(TOKENIZER));
    if beside.exists() {
        return Ok(beside);
    }
    if here.exists() {
        note(format_args!("no {}: using {TOKENIZER} of the current folder", beside.display()))?;
        return Ok(here.into());
    }
    bail!(
        "there is neither {} nor {TOKENIZER} in the current folder: give the model's tokenizer with -z",
        beside.display()
    )
}

/// A tokenizer with its own index.
pub struct OwnedTokenizer<'t> {
    bytes: &'t [u8],
    index: Vec<IndexEntry>,
}

impl<'t> OwnedTokenizer<'t> {
    pub fn new(bytes: &'t [u8], vocab_size: usize) -> Result<OwnedTokenizer<'t>, infer_core::Error> {
        // An entry takes 8 bytes at least: a vocabulary that cannot be in the file is not worth an
        // allocation.
        let mut index = vec![IndexEntry::EMPTY; vocab_size.min(bytes.len() / 8)];
        if index.len() < vocab_size {
            let token = infer_core::count_entries(bytes)?;
            return Err(infer_core::Error::TokenizerTruncated { token, vocab_size, have: bytes.len() });
        }
        infer_core::build_index(bytes, vocab_size, &mut index)?;
        Ok(OwnedTokenizer { bytes, index })
    }

    pub fn get(&self) -> Tokenizer<'_> {
        Tokenizer::with_index(self.bytes, &self.index)
    }
}

/// Encodes a text of any length.
pub fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> Result<Vec<u32>, infer_core::Error> {
    let most = Tokenizer::max_tokens(text.len());
    let mut tokens = vec![0; most];
    let n = tokenizer.encode(text, true, &mut vec![MergeSlot::EMPTY; most], &mut tokens)?;
    tokens.truncate(n);
    Ok(tokens)
}

/// Memory that a [`State`] borrows.
pub struct Buffers {
    plan: Plan,
    hot_f32: Vec<f32>,
    hot_i8: Vec<i8>,
    kv_f32: Vec<f32>,
    kv_i8: Vec<i8>,
    kv_scales: Vec<f32>,
}

impl Buffers {
    pub fn new(config: &Config, limits: Limits) -> anyhow::Result<Buffers> {
        let plan = config.plan(limits)?;
        let (n_f32, n_i8) = match limits.kv {
            KvType::F32 => (plan.kv_values, 0),
            KvType::I8 => (0, plan.kv_values),
        };
        let too_large = || format!("a KV cache of {} bytes: lower -n", plan.kv_bytes());
        Ok(Buffers {
            plan,
            hot_f32: zeroed(plan.hot_f32)?,
            hot_i8: zeroed(plan.hot_i8)?,
            kv_f32: zeroed(n_f32).with_context(too_large)?,
            kv_i8: zeroed(n_i8).with_context(too_large)?,
            kv_scales: zeroed(plan.kv_scales).with_context(too_large)?,
        })
    }

    pub fn state(&mut self) -> Result<State<'_>, infer_core::Error> {
        let hot = HotBuffers { f32: &mut self.hot_f32, i8: &mut self.hot_i8 };
        let kv = match self.plan.limits.kv {
            KvType::F32 => KvBuffers::F32(&mut self.kv_f32),
            KvType::I8 => KvBuffers::I8 { values: &mut self.kv_i8, scales: &mut self.kv_scales },
        };
        State::new(&self.plan, hot, kv)
    }
}

/// Zeros, or an error where `vec!` would end the process.
fn zeroed<T: Clone + Default + 'static>(n: usize) -> anyhow::Result<Vec<T>> {
    // Reserving tells whether the memory is to be had; vec! then gets pages that are zero already.
    Vec::<T>::new().try_reserve_exact(n)?;
    Ok(vec![T::default(); n])
}

/// A model with the memory of one sequence, and a sampler.
pub struct Session<'a> {
    model: Model<'a>,
    state: State<'a>,
    engine: Engine<'a>,
    pub sampler: Sampler,
    scratch: Vec<ProbIndex>,
    sampling: FullSampling,
    /// All tokens read, for the repetition penalty.
    tokens: Vec<u32>,
    model_name: &'a str,
}

impl<'a> Session<'a> {
    pub fn new(
        files: &'a ModelFiles,
        buffers: &'a mut Buffers,
        pool: &'a Pool,
        sampling: FullSampling,
    ) -> anyhow::Result<Session<'a>> {
        let model = files.model()?;
        let basic = sampling.basic;
        let mut sampler = Sampler::new(basic.temperature, basic.top_p, seed_or_clock(basic.seed))?;
        sampler.limit(sampling.top_k, sampling.min_p)?;
        Ok(Session {
            model,
            state: buffers.state()?,
            engine: Engine::new(Kernels::detect(), pool),
            sampler,
            scratch: vec![ProbIndex::default(); model.config().vocab_size],
            sampling,
            tokens: Vec::new(),
            model_name: files.model_name(),
        })
    }

    /// Positions used so far.
    pub fn pos(&self) -> usize {
        self.state.filled()
    }

    /// Reads tokens behind those that were read before, in batches.
    pub fn read(&mut self, tokens: &[u32]) -> anyhow::Result<()> {
        self.read_from(self.pos(), tokens, || false)
    }

    /// Reads tokens from position `pos` on, in batches; what was read from there on before is
    /// forgotten. Ends early once `stopped`, which it asks after each layer: [`pos`](Session::pos)
    /// tells how far it came.
    pub fn read_from(&mut self, pos: usize, tokens: &[u32], stopped: impl Fn() -> bool) -> anyhow::Result<()> {
        self.tokens.truncate(pos);
        self.state.rewind(pos)?;
        for tokens in tokens.chunks(self.state.plan().limits.batch) {
            begin(&self.model, &mut self.state, tokens)?;
            while step(&self.model, &mut self.state, &self.engine)? {
                if stopped() {
                    return Ok(());
                }
            }
            self.tokens.extend(tokens);
        }
        Ok(())
    }

    /// Picks the token that follows the last of the `n` tokens read.
    pub fn next_token(&mut self, n: usize) -> anyhow::Result<u32> {
        let row = (n - 1) % self.state.plan().limits.batch;
        let logits =
            classify(&self.model, &mut self.state, &self.engine, row).with_context(|| self.model_name.to_owned())?;
        if self.sampling.repeat_penalty != 1.0 {
            let recent = self.tokens.len().saturating_sub(self.sampling.repeat_last_n);
            let mut recent = self.tokens[recent..].to_vec();
            recent.sort_unstable();
            recent.dedup(); // the time grows with the square of their number
            penalize(logits, &recent, self.sampling.repeat_penalty)?;
        }
        Ok(self.sampler.sample(logits, &mut self.scratch)?)
    }
}

/// Multiplications that are worth a thread of their own: some 50 µs, in which threads meet dozens
/// of times.
const WORK_PER_THREAD: usize = 1 << 20;

/// Starts the threads that the command line asks for. By default they are the physical cores, but
/// fewer for a small model, which is slower with a second thread. `batch` is the number of tokens
/// that are mostly read at a time.
pub fn start_pool(threads: Option<NonZeroUsize>, config: &Config, batch: usize) -> anyhow::Result<Pool> {
    let threads = threads.unwrap_or_else(|| {
        let enough = batch.saturating_mul(multiplications(config)) / WORK_PER_THREAD;
        default_threads().min(NonZeroUsize::new(enough).unwrap_or(NonZeroUsize::MIN))
    });
    Pool::new(threads).with_context(|| format!("starting {threads} threads: lower --threads"))
}

/// Multiplications of weights for one token.
fn multiplications(config: &Config) -> usize {
    let Config { dim, hidden_dim, n_layers, vocab_size, .. } = *config;
    let layer = [2 * dim, 2 * config.kv_dim(), 3 * hidden_dim].iter().fold(0, |sum: usize, n| sum.saturating_add(*n));
    n_layers.saturating_mul(layer).saturating_add(vocab_size).saturating_mul(dim)
}

/// The seed of the command line; instead of 0, one that differs from run to run.
pub fn seed_or_clock(seed: u64) -> u64 {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64).max(1);
    if seed == 0 { clock() } else { seed }
}

/// Positions to run for: `-n`, or the whole context for 0 and for more than the model has.
pub fn budget(steps: usize, config: &Config) -> usize {
    if steps == 0 { config.seq_len } else { steps.min(config.seq_len) }
}
