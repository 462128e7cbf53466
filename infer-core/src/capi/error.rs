//! Errors in C: a code and the numbers.

use core::ffi::c_char;

use crate::error::Error;

/// The codes of infer_error. Beside each code: the infer_error's fields that it uses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum infer_code {
    /// No error.
    INFER_OK = 0,
    /// The model file is cut short: values are bytes needed, bytes there.
    INFER_ERROR_TRUNCATED,
    /// An address is not a multiple of what it must be: subject, `values[0]` the multiple in bytes.
    INFER_ERROR_MISALIGNED,
    /// The model file is of another version: `values[0]`.
    INFER_ERROR_UNKNOWN_VERSION,
    /// A header field breaks a rule: subject, `values[0]`, rule.
    INFER_ERROR_HEADER,
    /// An int8 model's groups cannot be used: values are group_size, dim, hidden_dim.
    INFER_ERROR_GROUP_SIZE,
    /// Sizes do not fit this machine's address space.
    INFER_ERROR_TOO_LARGE,
    /// This build does not support it: subject.
    INFER_ERROR_UNSUPPORTED,
    /// A buffer is too small: subject, values are elements needed, elements there.
    INFER_ERROR_BUFFER_TOO_SMALL,
    /// The model is not the one that was planned for.
    INFER_ERROR_MODEL_MISMATCH,
    /// No such token: values are the token, the size of the vocabulary.
    INFER_ERROR_TOKEN,
    /// Tokens do not fit at a position: values are position, number of tokens, positions filled,
    /// max_seq.
    INFER_ERROR_POSITION,
    /// No token, or more than a pass takes: values are tokens given, tokens at most.
    INFER_ERROR_BATCH,
    /// A call out of order: step before begin, classify before the last step, sample without a new
    /// classify.
    INFER_ERROR_NOT_READY,
    /// A logit is NaN or infinite, so the weights are damaged: `values[0]` is its token.
    INFER_ERROR_NOT_FINITE,
    /// A setting is out of range: subject, number, rule.
    INFER_ERROR_SETTING,
    /// The tokenizer file is cut short: values are the token, the size of the vocabulary, bytes
    /// there.
    INFER_ERROR_TOKENIZER_TRUNCATED,
    /// The tokenizer file is damaged: `values[0]` is the token, rule.
    INFER_ERROR_TOKENIZER_ENTRY,
    /// A pointer is null: subject.
    INFER_ERROR_NULL,
    /// The context was not initialised, or is a copy.
    INFER_ERROR_NOT_INITIALISED,
    /// A part of the memory is too small: subject, values are bytes needed, bytes there.
    INFER_ERROR_MEMORY_TOO_SMALL,
    /// Two areas of memory overlap: subject and rule are their names.
    INFER_ERROR_OVERLAP,
    /// A text is not UTF-8: `values[0]` is the first wrong byte.
    INFER_ERROR_TEXT,
    /// Every logit is minus infinity: no token is left to pick.
    INFER_ERROR_ALL_MASKED,
    /// The thread or task does not round to the nearest number (FPSCR.RMode on a Cortex-M,
    /// fesetround on a desktop).
    INFER_ERROR_ROUNDING,
}

use infer_code::*;

/// Text that is not zero terminated: print it with `%.*s`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct infer_text {
    /// The first byte.
    pub data: *const c_char,
    /// Bytes.
    pub bytes: usize,
}

/// Why a call was refused. A refused call has changed nothing but its own progress.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct infer_error {
    /// An infer_code; INFER_OK is 0.
    pub code: u32,
    /// What it is about: a field, a buffer, a setting. Static.
    pub subject: infer_text,
    /// The rule that is broken. Static.
    pub rule: infer_text,
    /// Numbers, as listed at infer_code.
    pub values: [i64; 4],
    /// The value of a setting.
    pub number: f64,
}

impl infer_text {
    pub(super) fn new(text: &[u8]) -> infer_text {
        infer_text { data: text.as_ptr().cast(), bytes: text.len() }
    }
}

impl infer_error {
    /// Not inlined, as a hundred places call it.
    #[cold]
    #[inline(never)]
    pub(super) fn new(code: infer_code, subject: &'static str, rule: &'static str, values: [i64; 4]) -> infer_error {
        let (subject, rule) = (infer_text::new(subject.as_bytes()), infer_text::new(rule.as_bytes()));
        infer_error { code: code as u32, subject, rule, values, number: 0.0 }
    }
}

/// Runs the body of a C function.
pub(super) fn call(body: impl FnOnce() -> Result<(), infer_error>) -> infer_error {
    match body() {
        Ok(()) => infer_error::new(INFER_OK, "", "", [0; 4]),
        Err(error) => error,
    }
}

impl From<Error> for infer_error {
    fn from(error: Error) -> infer_error {
        let new = infer_error::new;
        match error {
            Error::Truncated { need, have } => new(INFER_ERROR_TRUNCATED, "", "", [need as i64, have as i64, 0, 0]),
            Error::Misaligned => new(INFER_ERROR_MISALIGNED, "model", "", [crate::format::ALIGN as i64, 0, 0, 0]),
            Error::UnknownVersion { version } => new(INFER_ERROR_UNKNOWN_VERSION, "", "", [version.into(), 0, 0, 0]),
            Error::Header { field, value, rule } => new(INFER_ERROR_HEADER, field, rule, [value, 0, 0, 0]),
            Error::GroupSize { group_size, dim, hidden_dim } => {
                new(INFER_ERROR_GROUP_SIZE, "", "", [group_size, dim as i64, hidden_dim as i64, 0])
            }
            Error::TooLarge => new(INFER_ERROR_TOO_LARGE, "", "", [0; 4]),
            Error::Unsupported { what } => new(INFER_ERROR_UNSUPPORTED, what, "", [0; 4]),
            Error::BufferTooSmall { buffer, need, have } => {
                new(INFER_ERROR_BUFFER_TOO_SMALL, buffer, "", [need as i64, have as i64, 0, 0])
            }
            #[cfg(feature = "std")] // C functions allocate nothing
            Error::OutOfMemory { .. } => new(INFER_ERROR_TOO_LARGE, "", "", [0; 4]),
            Error::ModelMismatch | Error::OtherModel => new(INFER_ERROR_MODEL_MISMATCH, "", "", [0; 4]),
            Error::Token { token, vocab_size } => {
                new(INFER_ERROR_TOKEN, "", "", [token.into(), vocab_size as i64, 0, 0])
            }
            Error::Position { pos, n_tokens, filled, max_seq } => {
                new(INFER_ERROR_POSITION, "", "", [pos as i64, n_tokens as i64, filled as i64, max_seq as i64])
            }
            Error::Batch { n_tokens, batch } => new(INFER_ERROR_BATCH, "", "", [n_tokens as i64, batch as i64, 0, 0]),
            Error::NotReady => new(INFER_ERROR_NOT_READY, "", "", [0; 4]),
            Error::NotFinite { token } => new(INFER_ERROR_NOT_FINITE, "", "", [token as i64, 0, 0, 0]),
            Error::Rounding => new(INFER_ERROR_ROUNDING, "", "", [0; 4]),
            Error::AllMasked => new(INFER_ERROR_ALL_MASKED, "", "", [0; 4]),
            Error::Setting { name, value, rule } => {
                infer_error { number: value, ..new(INFER_ERROR_SETTING, name, rule, [0; 4]) }
            }
            Error::TokenizerTruncated { token, vocab_size, have } => {
                new(INFER_ERROR_TOKENIZER_TRUNCATED, "", "", [token as i64, vocab_size as i64, have as i64, 0])
            }
            Error::TokenizerEntry { token, rule } => {
                new(INFER_ERROR_TOKENIZER_ENTRY, "", rule, [token as i64, 0, 0, 0])
            }
        }
    }
}
