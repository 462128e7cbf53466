//! What an error says in words, without a heap or a formatting library.

use core::ffi::c_char;

use super::error::{infer_error, infer_text};
use super::memory::{Area, apart, lend, one, slice};

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
    // SAFETY: the caller passes an infer_error, which stays unchanged, and `capacity` writable
    // bytes; `apart` has found the two apart.
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
        // SAFETY: the texts of an error are static, and the caller promises that the error is as a
        // function of this library returned it.
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
