//! The context: made once from the caller's files and memory, checked in every call.

use core::ffi::c_void;

use super::error::infer_code::INFER_ERROR_NOT_INITIALISED;
use super::error::{call, infer_error};
use super::memory::{Area, Owned, apart, infer_memory, one, out, slice};
use super::plan::{infer_limits, plan};
use crate::engine::Engine;
use crate::kernels::Kernels;
use crate::model::Model;
use crate::runner::Serial;
use crate::sampler::{ProbIndex, Sampler};
use crate::state::State;
use crate::tokenizer::{MergeSlot, Tokenizer};

/// Size of infer_context in machine words, beside 8 bytes that align it.
pub const INFER_CONTEXT_WORDS: usize = 240;

/// A model, its memory and the progress of one sequence. It belongs to the caller, and must be all
/// zeros before infer_init: a static one is, a local one is with `= {0}`. It points to the memory
/// that infer_init was given and owns nothing, so it needs no release. Do not copy it; calls with a
/// copy are refused. Two contexts are independent; one context is for one thread at a time.
#[repr(C)]
pub struct infer_context {
    align: u64,
    words: [usize; INFER_CONTEXT_WORDS],
}

/// The content of an infer_context.
#[repr(C)]
pub(super) struct Context {
    /// [`mark`] of its own address once it is initialised. First, where [`initialised`] looks for
    /// it.
    mark: usize,
    pub model: Model<'static>,
    pub state: State<'static>,
    pub tokenizer: Tokenizer<'static>,
    pub sampler: Sampler,
    pub kernels: Kernels,
    pub candidates: &'static mut [ProbIndex],
    pub merge: &'static mut [MergeSlot],
    /// Memory that the pointers of later calls must not overlap.
    pub owned: Owned,
    /// The logits are those of the last pass and have not been sampled yet.
    pub classified: bool,
}

const _: () = assert!(size_of::<Context>() <= size_of::<infer_context>(), "raise INFER_CONTEXT_WORDS");
const _: () = assert!(align_of::<Context>() <= align_of::<infer_context>());

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
        // SAFETY: the caller passes a context that may be written, `out` has found it neither null
        // nor misaligned, and `apart` has found it apart from all that is read. The mark lies at
        // its beginning.
        unsafe { place.cast::<usize>().write(0) };
        // SAFETY: the caller passes an infer_limits and an infer_memory, which nothing writes
        // meanwhile.
        let (limits, memory) = unsafe { (one("limits", limits)?, one("memory", memory)?) };
        // SAFETY: the caller passes files of `model_bytes` and `tokenizer_bytes` readable bytes,
        // which stay as they are as long as the context is used.
        let (model, tokenizer) = unsafe {
            (slice("model", model.cast(), model_bytes)?, slice("tokenizer", tokenizer.cast(), tokenizer_bytes)?)
        };
        let [model_area, tokenizer_area] = files;
        let [limits_area, memory_area] = settings;
        let others = [area, model_area, tokenizer_area, limits_area, memory_area];
        let model = Model::from_bytes(model)?;
        let plan = plan(model.config(), limits)?;
        // SAFETY: the caller passes memory that nothing else uses as long as the context is used.
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
        // SAFETY: as for the mark; an infer_context is as large as a Context and aligned like one,
        // which is asserted above.
        unsafe { place.write(built) };
        Ok(())
    })
}

/// The context, if infer_init has made it at this place.
///
/// # Safety
/// `context` is NULL or points to an infer_context that nothing else uses for the lifetime.
pub(super) unsafe fn initialised<'a>(context: *mut infer_context) -> Result<&'a mut Context, infer_error> {
    let place = out("context", context)?;
    // SAFETY: `out` has found it neither null nor misaligned, so the caller passes an
    // infer_context. The mark lies at its beginning.
    if unsafe { place.cast::<usize>().read() } != mark(place) {
        return Err(infer_error::new(INFER_ERROR_NOT_INITIALISED, "context", "", [0; 4]));
    }
    // SAFETY: the mark says that infer_init has written a Context here, and the caller promises
    // that nothing else uses it for the lifetime.
    Ok(unsafe { &mut *place.cast::<Context>() })
}

/// The mark of a context at this address. It is neither zero, as contexts have even addresses, nor
/// the mark of a copy at another address.
fn mark(context: *const infer_context) -> usize {
    context.addr() ^ 0x696e_6665
}

pub(super) fn native() -> Kernels {
    #[cfg(feature = "std")]
    return Kernels::detect();
    #[cfg(not(feature = "std"))]
    Kernels::native()
}

pub(super) fn engine(kernels: Kernels) -> Engine<'static> {
    Engine::new(kernels, &Serial)
}
