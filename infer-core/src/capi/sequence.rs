//! One sequence: from text to tokens, through the model, and back to text.

use core::ffi::c_char;

use super::context::{Context, engine, infer_context, initialised};
use super::error::infer_code::INFER_ERROR_TEXT;
use super::error::{call, infer_error, infer_text};
use super::memory::{Area, lend, out, slice};
use crate::error::Error;
use crate::forward::{begin_at, classify, step};
use crate::math::hash_logits;
use crate::sampler::penalize;

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
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        let result = out("n_tokens", n_tokens)?;
        let written = [Area::new("tokens", tokens, capacity), Area::new("n_tokens", n_tokens, 1)];
        context.owned.check(&written, &[Area::new("text", text, text_bytes)])?;
        // SAFETY: the caller passes `text_bytes` readable bytes and room for `capacity` tokens, and
        // `check` has found the two apart.
        let (text, tokens) =
            unsafe { (slice("text", text.cast::<u8>(), text_bytes)?, lend("tokens", tokens, capacity)?) };
        let text = str::from_utf8(text)
            .map_err(|e| infer_error::new(INFER_ERROR_TEXT, "text", "", [e.valid_up_to() as i64, 0, 0, 0]))?;
        let n = context.tokenizer.encode(text, bos, context.merge, tokens)?;
        // SAFETY: `out` has found it neither null nor misaligned, and the caller passes room for
        // one value, which `check` has found apart from all else.
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
        // SAFETY: the caller passes what `begin` asks for.
        let context = unsafe { begin(context, tokens, n_tokens, pos) }?;
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
        // SAFETY: the caller passes what `begin` asks for.
        unsafe { begin(context, tokens, n_tokens, pos) }.map(|_| ())
    })
}

/// Begins a pass over `tokens` at `pos`, and lends the context for its steps.
///
/// # Safety
/// `context` is NULL or points to an infer_context that nothing else uses for the lifetime;
/// `tokens` points to `n_tokens` tokens, which nothing writes during the call.
unsafe fn begin<'a>(
    context: *mut infer_context,
    tokens: *const u32,
    n_tokens: usize,
    pos: usize,
) -> Result<&'a mut Context, infer_error> {
    // SAFETY: the caller passes NULL, or an infer_context that nothing else uses for the lifetime.
    let context = unsafe { initialised(context) }?;
    context.owned.check(&[], &[Area::new("tokens", tokens, n_tokens)])?;
    // SAFETY: the caller passes `n_tokens` tokens, which nothing writes during the call.
    let tokens = unsafe { slice("tokens", tokens, n_tokens) }?;
    context.classified = false;
    begin_at(&context.model, &mut context.state, tokens, pos)?;
    Ok(context)
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
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        let result = out("more", more)?;
        context.owned.check(&[Area::new("more", more, 1)], &[])?;
        let more = step(&context.model, &mut context.state, &engine(context.kernels))?;
        // SAFETY: `out` has found it neither null nor misaligned, and the caller passes room for
        // one value, which `check` has found apart from all else.
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
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        context.owned.check(&[Area::new("logits", logits, usize::from(!logits.is_null()))], &[])?;
        context.classified = false;
        let result = classify(&context.model, &mut context.state, &engine(context.kernels), row)?;
        context.classified = true;
        if !logits.is_null() {
            let logits = out("logits", logits)?;
            // SAFETY: `out` has found it neither null nor misaligned, and the caller passes room
            // for one value, which `check` has found apart from all else.
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
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        context.owned.check(&[], &[Area::new("recent", recent, n)])?;
        // SAFETY: the caller passes `n` tokens, which nothing writes during the call.
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
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        let result = out("token", token)?;
        context.owned.check(&[Area::new("token", token, 1)], &[])?;
        if !core::mem::take(&mut context.classified) {
            return Err(Error::NotReady.into());
        }
        let token = context.sampler.sample(context.state.logits(), context.candidates)?;
        // SAFETY: `out` has found it neither null nor misaligned, and the caller passes room for
        // one value, which `check` has found apart from all else.
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
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        let result = out("piece", piece)?;
        context.owned.check(&[Area::new("piece", piece, 1)], &[])?;
        let piece = infer_text::new(context.tokenizer.decode(previous, token)?);
        // SAFETY: `out` has found it neither null nor misaligned, and the caller passes room for
        // one value, which `check` has found apart from all else.
        unsafe { result.write(piece) };
        Ok(())
    })
}

/// Whether a text ends where the model gives this token: INFER_BOS of the next one, or an EOS that
/// the model's header names. False for a context that is not initialised.
///
/// # Safety
/// `context` is NULL or points to an infer_context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_ends(context: *mut infer_context, token: u32) -> bool {
    // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
    unsafe { initialised(context) }.is_ok_and(|context| context.model.header().ends(token))
}

/// Positions of the sequence so far: the next token goes here. 0 for a context that is not
/// initialised.
///
/// # Safety
/// `context` is NULL or points to an infer_context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_filled(context: *mut infer_context) -> usize {
    // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
    unsafe { initialised(context) }.map_or(0, |context| context.state.filled())
}

/// Continues a hash (FNV-1a, 64 bits) over `n` logits; it starts with INFER_HASH_START. Equal
/// hashes on a desktop and on a chip mean equal bits. A null pointer leaves the hash as it is.
///
/// # Safety
/// `logits` is NULL or points to `n` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_hash_logits(hash: u64, logits: *const f32, n: usize) -> u64 {
    // SAFETY: the caller passes NULL or `n` floats, which nothing writes during the call.
    unsafe { slice("logits", logits, n) }.map_or(hash, |logits| hash_logits(hash, logits))
}
