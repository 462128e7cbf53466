//! Errors in words, without the formatting code that `Display` would link.

use infer_core::Error;

/// Says what is wrong and what to do, and gives the number that the text ends with, if any.
pub fn explain(error: &Error) -> (&'static str, Option<i64>) {
    match *error {
        Error::NotFinite { token } => {
            ("the weights in flash are damaged, flash them again: not a number for token", Some(token as i64))
        }
        Error::Truncated { have, .. } => ("the model in flash is cut short; bytes", Some(have as i64)),
        Error::UnknownVersion { version } => {
            ("the model in flash is damaged, flash it again: format version", Some(version.into()))
        }
        Error::Header { value, .. } | Error::GroupSize { group_size: value, .. } => {
            ("the model's header in flash is damaged, flash it again: a field of", Some(value))
        }
        Error::Rounding => ("the FPU does not round to nearest: FPSCR or FPDSCR was changed", None),
        Error::ModelMismatch => ("the model in flash is not the one that the image was built with", None),
        Error::Position { n_tokens, .. } => {
            ("the prompt does not fit the positions of the run, shorten it: tokens", Some(n_tokens as i64))
        }
        Error::Setting { name, .. } => match name {
            "temperature" => ("the temperature must be a number from 0 upwards", None),
            "top-p" => ("top-p must be between 0 and 1", None),
            _ => ("the seed must not be 0", None),
        },
        Error::BufferTooSmall { need, .. } => ("a buffer is too small; elements needed", Some(need as i64)),
        _ => ("infer-core refused the model, the tokenizer or the request", None),
    }
}
