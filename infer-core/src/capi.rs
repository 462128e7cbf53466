//! The C interface: the library as an archive and a header, `include/infer_core.h`.
//!
//! The names here are the names in C, and the documentation of each item is what cbindgen puts into
//! the header, so it is written for C. No call allocates, prints or panics. Pointers are checked
//! for null and alignment, buffers for size and overlap, and the order of calls by a mark in the
//! context; what cannot be checked is named under "Safety" and in `docs/FIRMWARE.md`.
#![allow(unsafe_code, non_camel_case_types)]

mod error;
mod memory;

use core::ffi::{c_char, c_void};

use crate::config::{Config, WeightType};
use crate::error::Error;
use crate::forward::{Engine, begin_at, classify, step};
use crate::kernels::Kernels;
use crate::math::{HASH_START, hash_logits};
use crate::model::Model;
use crate::plan::{KvType, Limits, Plan};
use crate::runner::Serial;
use crate::sampler::{ProbIndex, Sampler, penalize};
use crate::state::State;
use crate::tokenizer::{BOS, EOS, MergeSlot, Tokenizer};

pub use error::{infer_code, infer_error, infer_error_write, infer_text};
pub use memory::{INFER_ALIGN, INFER_PARTS, infer_buffer, infer_memory, infer_part};

use error::call;
use error::infer_code::*;
use memory::{Area, Owned, apart, lend, one, out, slice};

/// Token that begins a sequence; sampled, it ends a story.
pub const INFER_BOS: u32 = 1;
/// Token that ends a sequence.
pub const INFER_EOS: u32 = 2;
/// Start value of infer_hash_logits.
pub const INFER_HASH_START: u64 = 0xcbf2_9ce4_8422_2325;
/// Size of infer_context in machine words, beside 8 bytes that align it.
pub const INFER_CONTEXT_WORDS: usize = 224;

const _: () = assert!(INFER_BOS == BOS && INFER_EOS == EOS && INFER_HASH_START == HASH_START);

/// A model, its memory and the progress of one sequence. Belongs to the caller, and is to be all
/// zeros before infer_init: a static one is, a local one with `= {0}`. It points to the memory that
/// infer_init was given and owns nothing, so it needs no release. Do not copy it; calls with a copy
/// are refused. Two contexts are independent; one context is for one thread at a time.
#[repr(C)]
pub struct infer_context {
    align: u64,
    words: [usize; INFER_CONTEXT_WORDS],
}

/// What lies in an infer_context.
#[repr(C)]
struct Context {
    /// [`mark`] of its own address once it is initialised. First, where [`context`] looks for it.
    mark: usize,
    model: Model<'static>,
    state: State<'static>,
    tokenizer: Tokenizer<'static>,
    sampler: Sampler,
    kernels: Kernels,
    candidates: &'static mut [ProbIndex],
    merge: &'static mut [MergeSlot],
    /// What the pointers of later calls must not overlap.
    owned: Owned,
    /// The logits are those of the last pass and have not been sampled yet.
    classified: bool,
}

const _: () = assert!(size_of::<Context>() <= size_of::<infer_context>(), "raise INFER_CONTEXT_WORDS");
const _: () = assert!(align_of::<Context>() <= align_of::<infer_context>());

/// Type of the cached keys and values.
#[repr(C)]
pub enum infer_kv {
    /// 4 bytes per value.
    INFER_KV_F32 = 0,
    /// 1 byte per value, with scales.
    INFER_KV_I8 = 1,
}

/// Implementations of the inner loops. They differ in speed only: all give the same bits.
#[repr(C)]
pub enum infer_kernels {
    /// The best for the machine that the archive was built for, or runs on where it can find out.
    /// The default.
    INFER_KERNELS_NATIVE = 0,
    /// The portable ones.
    INFER_KERNELS_SCALAR = 1,
    /// For a Cortex-M with FPU and the DSP extension, an optional part of the M33 and M55. On
    /// thumbv7em they are the native ones.
    INFER_KERNELS_CORTEX_M_DSP = 2,
    /// For a Cortex-M with Helium, its vector extension: M55 and M85.
    INFER_KERNELS_HELIUM = 3,
}

/// What a context is to be large enough for.
#[repr(C)]
pub struct infer_limits {
    /// Positions of a sequence, prompt included: 1 to the model's seq_len. The KV cache grows with
    /// it.
    pub max_seq: usize,
    /// Tokens per infer_forward: 1 on a chip, 32 or so where prompts are to be read fast.
    pub batch: usize,
    /// Bytes of the longest text for infer_encode.
    pub prompt_bytes: usize,
    /// An infer_kv.
    pub kv: u32,
}

/// Hyperparameters of a model.
#[repr(C)]
pub struct infer_config {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward network.
    pub hidden_dim: usize,
    /// Transformer layers, which is calls of infer_step per pass.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Tokens, and logits.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub seq_len: usize,
    /// Weights that share a scale in an int8 model; 0 for f32.
    pub group_size: usize,
}

/// Version of the archive, as text; static.
#[unsafe(no_mangle)]
pub extern "C" fn infer_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Reads the header of a model file of llama2.c, version 0, 1 or 2. The first 256 bytes of the file
/// are enough.
///
/// Errors: INFER_ERROR_TRUNCATED, INFER_ERROR_UNKNOWN_VERSION, INFER_ERROR_HEADER,
/// INFER_ERROR_GROUP_SIZE.
///
/// # Safety
/// `model` points to `model_bytes` readable bytes, and `config` to an infer_config, whose content
/// does not matter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_read_config(
    model: *const c_void,
    model_bytes: usize,
    config: *mut infer_config,
) -> infer_error {
    call(|| {
        let result = out("config", config)?;
        apart(&[Area::new("config", config, 1)], &[Area::new("model", model.cast::<u8>(), model_bytes)])?;
        // SAFETY: the caller's promise.
        let c = Config::from_header(unsafe { slice("model", model.cast(), model_bytes) }?)?;
        let group_size = match c.weights {
            WeightType::F32 => 0,
            WeightType::Q8 { group_size } => group_size,
        };
        let Config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, .. } = c;
        let config = infer_config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, group_size };
        // SAFETY: the caller's promise; null and alignment are checked.
        unsafe { result.write(config) };
        Ok(())
    })
}

/// Says how much memory a model takes within `limits`: sets `bytes` of every part of `memory` to
/// the exact number, which may be 0, and `data` to NULL. The first 256 bytes of the model file are
/// enough.
///
/// Errors: as infer_read_config; INFER_ERROR_SETTING for a limit out of range,
/// INFER_ERROR_TOO_LARGE, INFER_ERROR_UNSUPPORTED.
///
/// # Safety
/// `model` points to `model_bytes` readable bytes, `limits` to an infer_limits, and `memory` to an
/// infer_memory, whose content does not matter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_plan(
    model: *const c_void,
    model_bytes: usize,
    limits: *const infer_limits,
    memory: *mut infer_memory,
) -> infer_error {
    call(|| {
        let result = out("memory", memory)?;
        let read = [Area::new("limits", limits, 1), Area::new("model", model.cast::<u8>(), model_bytes)];
        apart(&[Area::new("memory", memory, 1)], &read)?;
        // SAFETY: the caller's promise.
        let (limits, model) = unsafe { (one("limits", limits)?, slice("model", model.cast(), model_bytes)?) };
        let plan = plan(&Config::from_header(model)?, limits)?;
        let memory = infer_memory::needed(&plan, limits.prompt_bytes)?;
        // SAFETY: the caller's promise; null and alignment are checked.
        unsafe { result.write(memory) };
        Ok(())
    })
}

/// Makes a context from a model file, its tokenizer file and memory for all parts. Temperature 0 is
/// set: infer_sample takes the most likely token until infer_set_sampler says otherwise. A context
/// may be initialised again at any time.
///
/// Ownership: everything stays the caller's. The files and the memory behind `memory` must stay
/// where they are as long as the context is used: the files unchanged, the memory untouched by
/// anybody else. `limits` and `memory` themselves are only read. Files are used in place, from
/// flash or from a mapped file; the model starts at a multiple of INFER_ALIGN bytes, better 16. The
/// memory of each part starts at a multiple of INFER_ALIGN bytes, too; it is cleared; more than
/// infer_plan asks for is accepted.
///
/// Errors: as infer_plan; INFER_ERROR_MEMORY_TOO_SMALL, INFER_ERROR_OVERLAP,
/// INFER_ERROR_TOKENIZER_TRUNCATED, INFER_ERROR_TOKENIZER_ENTRY, INFER_ERROR_ROUNDING. The context
/// then counts as not initialised.
///
/// # Safety
/// `context` points to an infer_context of zeros, or one initialised before; `model` and
/// `tokenizer` point to so many readable bytes; every part of `memory` points to so many bytes that
/// nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_init(
    context: *mut infer_context,
    model: *const c_void,
    model_bytes: usize,
    tokenizer: *const c_void,
    tokenizer_bytes: usize,
    limits: *const infer_limits,
    memory: *const infer_memory,
) -> infer_error {
    call(|| {
        let place = out("context", context)?.cast::<Context>();
        let area = Area::new("context", context, 1);
        let files = [
            Area::new("model", model.cast::<u8>(), model_bytes),
            Area::new("tokenizer", tokenizer.cast::<u8>(), tokenizer_bytes),
        ];
        let settings = [Area::new("limits", limits, 1), Area::new("memory", memory, 1)];
        apart(&[area], &files)?;
        apart(&[area], &settings)?;
        // SAFETY: the context is the caller's to write, the mark lies at its beginning, and nothing
        // that is read overlaps it.
        unsafe { place.cast::<usize>().write(0) };
        // SAFETY: the caller's promise.
        let (limits, memory) = unsafe { (one("limits", limits)?, one("memory", memory)?) };
        // SAFETY: the caller's promise.
        let (model, tokenizer) = unsafe {
            (slice("model", model.cast(), model_bytes)?, slice("tokenizer", tokenizer.cast(), tokenizer_bytes)?)
        };
        let [model_area, tokenizer_area] = files;
        let [limits_area, memory_area] = settings;
        let others = [area, model_area, tokenizer_area, limits_area, memory_area];
        let model = Model::from_bytes(model)?;
        let plan = plan(model.config(), limits)?;
        // SAFETY: the caller's promise.
        let parts = unsafe { memory.lend(&plan, limits.prompt_bytes, &others) }?;
        let [a, b, c, d, e, f, g] = parts.areas;
        let built = Context {
            mark: mark(context),
            model,
            state: State::new(&plan, parts.hot, parts.kv)?,
            tokenizer: Tokenizer::new(tokenizer, model.config().vocab_size, parts.tokenizer)?,
            sampler: Sampler::new(0.0, 0.0, 1)?,
            kernels: native(),
            candidates: parts.sampler,
            merge: parts.merge,
            owned: Owned { written: [area, a, b, c, d, e, f, g], read: files },
            classified: false,
        };
        // SAFETY: an infer_context is large enough for a Context, and aligned: asserted above.
        unsafe { place.write(built) };
        Ok(())
    })
}

/// Sets how infer_sample picks: temperature 0 takes the most likely token, 1 samples the model's
/// distribution; `topp` keeps the most likely tokens up to that probability mass (0 and 1 turn it
/// off); `seed` starts the random numbers. The same seed gives the same tokens on every machine.
///
/// Errors: INFER_ERROR_SETTING for a temperature below 0, a topp outside 0 to 1, a NaN, or seed 0.
///
/// # Safety
/// `context` is NULL or points to an infer_context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_set_sampler(
    context: *mut infer_context,
    temperature: f32,
    topp: f32,
    seed: u64,
) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        context.sampler = Sampler::new(temperature, topp, seed)?;
        Ok(())
    })
}

/// Limits beside `topp`: `top_k` keeps that many of the most likely tokens, `min_p` those that are
/// at least `min_p` times as likely as the most likely one. 0 turns either off; infer_set_sampler
/// turns both off.
///
/// Errors: INFER_ERROR_SETTING for a min_p outside 0 to 1, or a NaN.
///
/// # Safety
/// `context` is NULL or points to an infer_context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_set_limits(context: *mut infer_context, top_k: usize, min_p: f32) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        Ok(context.sampler.limit(top_k, min_p)?)
    })
}

/// Chooses kernels: an infer_kernels. Without this call they are INFER_KERNELS_NATIVE. A program
/// that calls it links all kernels of its target: 29 KB more on a Cortex-M4 at opt-level 3.
///
/// Errors: INFER_ERROR_SETTING for another number, INFER_ERROR_UNSUPPORTED for kernels of another
/// target than that of the archive.
///
/// # Safety
/// `context` is NULL or points to an infer_context. With INFER_KERNELS_CORTEX_M_DSP the core has
/// the DSP extension. With INFER_KERNELS_HELIUM it has Helium, and the program has switched it on
/// together with the FPU (CPACR, CP10 and CP11). Neither the target nor this call can tell; a core
/// without them faults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_set_kernels(context: *mut infer_context, kernels: u32) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        context.kernels = match kernels {
            0 => native(),
            1 => Kernels::scalar(),
            #[cfg(thumb_fpu)]
            // SAFETY: the caller's promise.
            2 => unsafe { Kernels::cortex_m_dsp() },
            #[cfg(thumb_fpu)]
            // SAFETY: the caller's promise.
            3 => unsafe { Kernels::helium() },
            #[cfg(not(thumb_fpu))]
            2 | 3 => return Err(Error::Unsupported { what: "kernels of a Cortex-M with FPU" }.into()),
            other => {
                let (value, rule) = (f64::from(other), "it must be an infer_kernels");
                return Err(Error::Setting { name: "kernels", value, rule }.into());
            }
        };
        Ok(())
    })
}

/// Turns a text into tokens, with INFER_BOS in front if `bos`. Writes at most `capacity` of them to
/// `tokens` and their number to `n_tokens`; text_bytes + 2 are always enough. `text` is UTF-8 and
/// need not end with a zero.
///
/// Errors: INFER_ERROR_TEXT, INFER_ERROR_BUFFER_TOO_SMALL for `tokens`, or for a text longer than
/// prompt_bytes; null pointers.
///
/// # Safety
/// `context` is NULL or points to an infer_context; `text` points to `text_bytes` readable bytes,
/// `tokens` to `capacity` writable tokens, `n_tokens` to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_encode(
    context: *mut infer_context,
    text: *const c_char,
    text_bytes: usize,
    bos: bool,
    tokens: *mut u32,
    capacity: usize,
    n_tokens: *mut usize,
) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        let result = out("n_tokens", n_tokens)?;
        let written = [Area::new("tokens", tokens, capacity), Area::new("n_tokens", n_tokens, 1)];
        context.owned.check(&written, &[Area::new("text", text, text_bytes)])?;
        // SAFETY: the caller's promise.
        let (text, tokens) =
            unsafe { (slice("text", text.cast::<u8>(), text_bytes)?, lend("tokens", tokens, capacity)?) };
        let text = str::from_utf8(text)
            .map_err(|e| infer_error::new(INFER_ERROR_TEXT, "text", "", [e.valid_up_to() as i64, 0, 0, 0]))?;
        let n = context.tokenizer.encode(text, bos, context.merge, tokens)?;
        // SAFETY: the caller's promise; null and alignment are checked.
        unsafe { result.write(n) };
        Ok(())
    })
}

/// Feeds `n_tokens` tokens at positions `pos`, `pos` + 1, … through all layers; then infer_classify
/// gives logits. `pos` is at most infer_filled; a smaller one forgets the positions from there on,
/// 0 starts a new sequence.
///
/// Errors: INFER_ERROR_BATCH, INFER_ERROR_POSITION, INFER_ERROR_TOKEN.
///
/// # Safety
/// `context` is NULL or points to an infer_context; `tokens` points to `n_tokens` tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_forward(
    context: *mut infer_context,
    tokens: *const u32,
    n_tokens: usize,
    pos: usize,
) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        context.owned.check(&[], &[Area::new("tokens", tokens, n_tokens)])?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { slice("tokens", tokens, n_tokens) }?;
        context.classified = false;
        begin_at(&context.model, &mut context.state, tokens, pos)?;
        while step(&context.model, &mut context.state, &engine(context.kernels))? {}
        Ok(())
    })
}

/// infer_forward in parts: begins a pass. Call infer_step until there is no more, with time for a
/// watchdog or other tasks in between.
///
/// Errors: as infer_forward.
///
/// # Safety
/// As infer_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_begin(
    context: *mut infer_context,
    tokens: *const u32,
    n_tokens: usize,
    pos: usize,
) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        context.owned.check(&[], &[Area::new("tokens", tokens, n_tokens)])?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { slice("tokens", tokens, n_tokens) }?;
        context.classified = false;
        Ok(begin_at(&context.model, &mut context.state, tokens, pos)?)
    })
}

/// Computes one layer, and says in `more` whether another one is to be done.
///
/// Errors: INFER_ERROR_NOT_READY without infer_begin, or after the last layer.
///
/// # Safety
/// `context` is NULL or points to an infer_context, `more` to a bool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_step(context: *mut infer_context, more: *mut bool) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        let result = out("more", more)?;
        context.owned.check(&[Area::new("more", more, 1)], &[])?;
        let more = step(&context.model, &mut context.state, &engine(context.kernels))?;
        // SAFETY: the caller's promise; null is checked.
        unsafe { result.write(more) };
        Ok(())
    })
}

/// Computes the logits of one token of the last pass, `row` counted from its first: 0 when it had
/// one. If `logits` is not NULL, it is set to the vocab_size logits. They lie in the part
/// INFER_HOT_F32, may be changed, and hold until the next call with this context.
///
/// Errors: INFER_ERROR_NOT_READY before the last infer_step or for a row that the pass did not
/// have; INFER_ERROR_NOT_FINITE when damaged weights gave a NaN or an infinity.
///
/// # Safety
/// `context` is NULL or points to an infer_context; `logits` is NULL or points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_classify(context: *mut infer_context, row: usize, logits: *mut *mut f32) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        context.owned.check(&[Area::new("logits", logits, usize::from(!logits.is_null()))], &[])?;
        context.classified = false;
        let result = classify(&context.model, &mut context.state, &engine(context.kernels), row)?;
        context.classified = true;
        if !logits.is_null() {
            let logits = out("logits", logits)?;
            // SAFETY: the caller's promise; null and alignment are checked.
            unsafe { logits.write(result.as_mut_ptr()) };
        }
        Ok(())
    })
}

/// Makes `n` tokens that came up recently less likely, in the logits of the last infer_classify:
/// positive ones are divided by `penalty`, negative ones multiplied, each once. 1 changes nothing.
///
/// Errors: INFER_ERROR_NOT_READY without a new infer_classify, INFER_ERROR_SETTING for a penalty
/// that is not a finite number above 0, INFER_ERROR_TOKEN.
///
/// # Safety
/// `context` is NULL or points to an infer_context; `recent` points to `n` tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_penalize(
    context: *mut infer_context,
    recent: *const u32,
    n: usize,
    penalty: f32,
) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        context.owned.check(&[], &[Area::new("recent", recent, n)])?;
        // SAFETY: the caller's promise.
        let recent = unsafe { slice("recent", recent, n) }?;
        if !context.classified {
            return Err(Error::NotReady.into());
        }
        Ok(penalize(context.state.logits(), recent, penalty)?)
    })
}

/// Picks a token from the logits of the last infer_classify, once; they are overwritten. A logit
/// that was set to minus infinity is a mask: its token is never picked.
///
/// Errors: INFER_ERROR_NOT_READY without a new infer_classify, INFER_ERROR_NOT_FINITE,
/// INFER_ERROR_ALL_MASKED.
///
/// # Safety
/// `context` is NULL or points to an infer_context, `token` to a uint32_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_sample(context: *mut infer_context, token: *mut u32) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        let result = out("token", token)?;
        context.owned.check(&[Area::new("token", token, 1)], &[])?;
        if !core::mem::take(&mut context.classified) {
            return Err(Error::NotReady.into());
        }
        let token = context.sampler.sample(context.state.logits(), context.candidates)?;
        // SAFETY: the caller's promise; null and alignment are checked.
        unsafe { result.write(token) };
        Ok(())
    })
}

/// Gives the bytes of `token` when it follows `previous`: right after INFER_BOS one leading space
/// is dropped. The bytes of one token need not be whole UTF-8 characters, and a model may give
/// control characters. They lie in the tokenizer file or in the archive, and hold as long as the
/// file.
///
/// Errors: INFER_ERROR_TOKEN.
///
/// # Safety
/// `context` is NULL or points to an infer_context, `piece` to an infer_text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_decode(
    context: *mut infer_context,
    previous: u32,
    token: u32,
    piece: *mut infer_text,
) -> infer_error {
    call(|| {
        // SAFETY: the caller's promise.
        let context = unsafe { initialised(context) }?;
        let result = out("piece", piece)?;
        context.owned.check(&[Area::new("piece", piece, 1)], &[])?;
        let piece = infer_text::new(context.tokenizer.decode(previous, token)?);
        // SAFETY: the caller's promise; null and alignment are checked.
        unsafe { result.write(piece) };
        Ok(())
    })
}

/// Positions of the sequence so far: the next token goes here. 0 for a context that is not
/// initialised.
///
/// # Safety
/// `context` is NULL or points to an infer_context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_filled(context: *mut infer_context) -> usize {
    // SAFETY: the caller's promise.
    unsafe { initialised(context) }.map_or(0, |context| context.state.filled())
}

/// Continues a hash (FNV-1a, 64 bits) over `n` logits; it starts with INFER_HASH_START. Equal
/// hashes on a desktop and on a chip mean equal bits. A null pointer leaves the hash as it is.
///
/// # Safety
/// `logits` is NULL or points to `n` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_hash_logits(hash: u64, logits: *const f32, n: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { slice("logits", logits, n) }.map_or(hash, |logits| hash_logits(hash, logits))
}

fn plan(config: &Config, limits: &infer_limits) -> Result<Plan, Error> {
    let kv = match limits.kv {
        0 => KvType::F32,
        1 => KvType::I8,
        other => {
            let (value, rule) = (f64::from(other), "it must be an infer_kv");
            return Err(Error::Setting { name: "kv", value, rule });
        }
    };
    config.plan(Limits { max_seq: limits.max_seq, batch: limits.batch, threads: 1, kv })
}

/// The context, if infer_init has made it at this place.
///
/// # Safety
/// `context` is NULL or points to an infer_context that nothing else uses for the lifetime.
unsafe fn initialised<'a>(context: *mut infer_context) -> Result<&'a mut Context, infer_error> {
    let place = out("context", context)?;
    // SAFETY: the caller's promise; null and alignment are checked, and the mark lies at the
    // beginning.
    if unsafe { place.cast::<usize>().read() } != mark(place) {
        return Err(infer_error::new(INFER_ERROR_NOT_INITIALISED, "context", "", [0; 4]));
    }
    // SAFETY: the mark says that infer_init has written a Context here.
    Ok(unsafe { &mut *place.cast::<Context>() })
}

/// Neither zero nor that of a copy at another address, as contexts have even addresses.
fn mark(context: *const infer_context) -> usize {
    context.addr() ^ 0x696e_6665
}

fn native() -> Kernels {
    #[cfg(feature = "std")]
    return Kernels::detect();
    #[cfg(not(feature = "std"))]
    Kernels::native()
}

fn engine(kernels: Kernels) -> Engine<'static> {
    Engine::new(kernels, &Serial)
}

/// Never linked: the symbol check of the archive fails when something could panic.
#[cfg(any(target_os = "none", target_family = "wasm"))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
