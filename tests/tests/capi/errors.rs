//! The library says errors in words.

use infer_core::Error;
use infer_core::capi::{infer_error, infer_error_write};

use crate::text;

/// Rust and C have one wording, except where the advice is about the language.
#[test]
fn errors_read_as_in_rust() {
    let (field, name, rule) = ("dim", "seed", "it must be small");
    let errors = [
        Error::Truncated { need: u64::MAX >> 1, have: 0 },
        Error::UnknownVersion { version: -3 },
        Error::Header { field, value: i64::MIN, rule },
        Error::GroupSize { group_size: 3, dim: 64, hidden_dim: 172 },
        Error::TooLarge,
        Error::Unsupported { what: "this" },
        Error::BufferTooSmall { buffer: "tokens", need: 10, have: 9 },
        Error::Token { token: u32::MAX, vocab_size: 512 },
        Error::Position { pos: 1, n_tokens: 2, filled: 3, max_seq: 4 },
        Error::Batch { n_tokens: 5, batch: 1 },
        Error::NotFinite { token: 7 },
        Error::AllMasked,
        Error::Rounding,
        Error::Setting { name, value: 0.0, rule },
        Error::Setting { name, value: -1.25, rule },
        Error::Setting { name, value: 1e6 + 0.062, rule },
        Error::Setting { name, value: f64::NAN, rule },
        Error::Setting { name, value: f64::NEG_INFINITY, rule },
        Error::TokenizerTruncated { token: 1, vocab_size: 2, have: 3 },
        Error::TokenizerEntry { token: 1, rule },
    ];
    for error in errors {
        assert_eq!(text(&error.into()), error.to_string());
    }
    for error in [Error::Misaligned, Error::ModelMismatch, Error::OtherModel, Error::NotReady] {
        assert!(!text(&error.into()).is_empty());
    }
}

#[test]
fn long_messages_are_cut_to_the_buffer() {
    let error = infer_error::from(Error::Token { token: 5, vocab_size: 3 });
    let mut text = [1; 12];
    // SAFETY: the error comes from the library, and the text has more than 9 writable bytes.
    let n = unsafe { infer_error_write(&error, text.as_mut_ptr(), 9) };
    assert_eq!(n, "token 5 is outside the vocabulary of 3".len());
    assert_eq!(text[..9], b"token 5 \0".map(|byte| byte as std::ffi::c_char));
    assert_eq!(text[9..], [1; 3]);
}
