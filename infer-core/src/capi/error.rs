//! Errors in C: a code, the numbers, and a text that needs neither a heap nor a formatting library.

use core::ffi::c_char;

use super::memory::{Area, apart, lend, one, slice};
use crate::error::Error;

/// What an infer_error says. Beside each code: the infer_error's fields that it uses.
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
    /// Not to be had in this build: subject.
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

/// Texts in the order of the codes. `s` stands for subject, `r` for rule, `n` for number, a digit
/// for one of the values.
const TEXTS: [&str; 25] = [
    "no error",
    "the file has {1} bytes and its header promises {0}: it is cut short or not a llama2.c model",
    "{s} does not start at a multiple of {0} bytes",
    "format version {0} is unknown: export the model as version 0, 1 or 2",
    "header field {s} is {0}, but {r}: not a llama2.c model, or damaged",
    "group_size {0} cannot be used with dim {1} and hidden_dim {2}: it must be a multiple of 4, at most 1024, and divide \
     both; quantise the model again with a smaller group",
    "the sizes in the header do not fit this machine's memory",
    "{s}: not supported by this build",
    "buffer {s} has room for {1} elements and needs {0}",
    "the plan is not this model's: initialise the context again",
    "token {0} is outside the vocabulary of {1}",
    "{1} token(s) cannot be placed at position {0}: {2} of {3} positions are filled",
    "{0} tokens in one call: this state takes 1 to {1}",
    "a call out of order: infer_begin, infer_step until there is no more, infer_classify, infer_sample",
    "the logit of token {0} is not a finite number: the weights are damaged",
    "{s} is {n}, but {r}",
    "the tokenizer ends ({2} bytes) inside the entry of token {0} of {1}: it is cut short, damaged, or belongs to another \
     model",
    "the tokenizer's entry of token {0} is damaged: {r}",
    "{s} is a null pointer",
    "the context is not initialised: call infer_init first, and do not copy a context",
    "{s} has {1} bytes and needs {0}: infer_plan says how much",
    "{s} and {r} overlap: give each memory of its own",
    "the text is not UTF-8 from byte {0} on",
    "every logit is minus infinity: leave at least one token that may be picked",
    "this thread or task does not round to nearest: set the rounding mode back to the default",
];

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
    /// Out of line: it is named in a hundred places.
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

/// Writes what an error says, in words and with its numbers, as zero-terminated text; cut where
/// `capacity` ends. No message is longer than 255 bytes.
///
/// Returns the bytes of the whole text, without the zero: it was cut if that is `capacity` or more.
/// 0 if a pointer is null, or the text would overwrite the error.
///
/// # Safety
/// `error` points to an infer_error as a function of this library returned it; `text` to `capacity`
/// writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_error_write(error: *const infer_error, text: *mut c_char, capacity: usize) -> usize {
    if apart(&[Area::new("text", text, capacity)], &[Area::new("error", error, 1)]).is_err() {
        return 0;
    }
    // SAFETY: the caller's promise.
    let (error, out) = unsafe { (one("error", error), lend("text", text.cast::<u8>(), capacity)) };
    let (Ok(error), Ok([out @ .., _])) = (error, out) else { return 0 }; // the last byte stays zero
    let mut writer = Writer { out, len: 0 };
    let mut template = TEXTS.get(error.code as usize).unwrap_or(&"unknown error").bytes();
    while let Some(byte) = template.next() {
        if byte != b'{' {
            writer.push(byte);
            continue;
        }
        match template.next().unwrap_or(0) {
            b's' => writer.push_text(&error.subject),
            b'r' => writer.push_text(&error.rule),
            b'n' => writer.push_number(error.number),
            digit => {
                writer.push_integer(error.values.get(digit.wrapping_sub(b'0') as usize).copied().unwrap_or(0));
            }
        }
        template.next(); // the closing brace
    }
    writer.len
}

/// Writes as far as there is room, and counts on.
struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.out.get_mut(self.len) {
            *slot = byte;
        }
        self.len += 1;
    }

    fn push_text(&mut self, text: &infer_text) {
        // SAFETY: the texts of an error are static, as the caller promised not to have changed
        // them.
        let text = unsafe { slice("text", text.data.cast::<u8>(), text.bytes) };
        text.unwrap_or(&[]).iter().for_each(|byte| self.push(*byte));
    }

    fn push_integer(&mut self, value: i64) {
        if value < 0 {
            self.push(b'-');
        }
        let mut digits = [0; 20];
        let mut rest = value.unsigned_abs();
        let mut n = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            n += 1;
            if rest == 0 {
                break;
            }
        }
        digits.iter().skip(20 - n).for_each(|digit| self.push(*digit));
    }

    /// Up to three decimals.
    fn push_number(&mut self, value: f64) {
        if !value.is_finite() {
            let text = if value.is_nan() {
                "NaN"
            } else if value < 0.0 {
                "-inf"
            } else {
                "inf"
            };
            text.bytes().for_each(|byte| self.push(byte));
            return;
        }
        if value < 0.0 {
            self.push(b'-');
        }
        let thousandths = ((value.abs()) * 1000.0 + 0.5) as i64;
        self.push_integer(thousandths / 1000);
        let mut rest = thousandths % 1000;
        if rest > 0 {
            self.push(b'.');
        }
        while rest > 0 {
            self.push(b'0' + (rest / 100) as u8);
            rest = rest % 100 * 10;
        }
    }
}
