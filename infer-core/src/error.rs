//! The errors of this crate: what is wrong with a file, a buffer or an argument, with the numbers
//! that a person needs to act.

use core::fmt;

/// Why an operation of this crate was refused. Small, `Copy`, and never followed by a changed
/// result: an operation that returns an error has written nothing that a later call would trust.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error {
    /// The file ends before its last tensor (bytes).
    Truncated {
        /// Bytes that the header promises.
        need: u64,
        /// Bytes that are there.
        have: u64,
    },
    /// The model's first byte must lie at a multiple of four: wrap `include_bytes!` in
    /// [`crate::Aligned`].
    Misaligned,
    /// The file has the magic number of versions 1 and 2, and another version.
    UnknownVersion {
        /// The version field.
        version: i32,
    },
    /// A header field breaks a rule.
    Header {
        /// Name of the field in the format description.
        field: &'static str,
        /// Its value.
        value: i64,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A v2 group size that cannot be used: groups must be multiples of 4 up to 1024 that divide
    /// dim and hidden_dim.
    GroupSize {
        /// Weights that share one scale.
        group_size: i64,
        /// Model dimension.
        dim: usize,
        /// Hidden dimension of the feed-forward network.
        hidden_dim: usize,
    },
    /// Sizes computed from the header do not fit this machine's address space.
    TooLarge,
    /// A file or setting is well formed, but this build does not support it.
    Unsupported {
        /// What is missing.
        what: &'static str,
    },
    /// A buffer given by the caller is too small (elements).
    BufferTooSmall {
        /// Which buffer.
        buffer: &'static str,
        /// Elements needed.
        need: usize,
        /// Elements given.
        have: usize,
    },
    /// The system has no memory for a buffer.
    #[cfg(feature = "std")]
    OutOfMemory {
        /// Which buffer.
        buffer: &'static str,
        /// Bytes needed.
        bytes: u64,
    },
    /// The state was planned for a model of another configuration, or the plan was changed by hand.
    ModelMismatch,
    /// The sequence was begun with another model, or with the same one at another place in memory.
    OtherModel,
    /// The thread or task does not round to the nearest number. Results that are the same
    /// everywhere require it.
    Rounding,
    /// A token id that the vocabulary does not have.
    Token {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The tokens do not fit behind the position: `pos <= filled` and `pos + n_tokens <= max_seq`
    /// must hold.
    Position {
        /// Position asked for.
        pos: usize,
        /// Number of tokens to be placed there.
        n_tokens: usize,
        /// Positions that the KV cache holds already.
        filled: usize,
        /// Positions that the KV cache has room for.
        max_seq: usize,
    },
    /// No token, or more tokens in one call than the state was planned for.
    Batch {
        /// Tokens given.
        n_tokens: usize,
        /// Tokens that the state takes at once.
        batch: usize,
    },
    /// `step` or `classify` was called before `begin`, or for a row that the last call did not
    /// compute.
    NotReady,
    /// A logit is NaN or infinite: the weights are damaged.
    NotFinite {
        /// Token id of the first such logit.
        token: usize,
    },
    /// Every logit is minus infinity: no token is left to pick.
    AllMasked,
    /// A setting is outside its range.
    Setting {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        rule: &'static str,
    },
    /// The tokenizer file ends inside the entry of this token, or the entry's length runs past the
    /// end.
    TokenizerTruncated {
        /// The token.
        token: usize,
        /// Tokens that the model's vocabulary needs.
        vocab_size: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// An entry of the tokenizer file is damaged.
    TokenizerEntry {
        /// The token.
        token: usize,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Truncated { need, have } => write!(
                f,
                "the file has {have} bytes and its header promises {need}: it is cut short or not a llama2.c model"
            ),
            Error::Misaligned => write!(
                f,
                "the model does not start at a multiple of 4 bytes: wrap include_bytes! in infer_core::Aligned"
            ),
            Error::UnknownVersion { version } => {
                write!(f, "format version {version} is unknown: export the model as version 0, 1 or 2")
            }
            Error::Header { field, value, rule } => {
                write!(f, "header field {field} is {value}, but {rule}: not a llama2.c model, or damaged")
            }
            Error::GroupSize { group_size, dim, hidden_dim } => write!(
                f,
                "group_size {group_size} cannot be used with dim {dim} and hidden_dim {hidden_dim}: it must be a \
                 multiple of 4, at most 1024, and divide both; quantise the model again with a smaller group"
            ),
            Error::TooLarge => write!(f, "the sizes in the header do not fit this machine's memory"),
            Error::Unsupported { what } => write!(f, "{what}: not supported by this build"),
            Error::BufferTooSmall { buffer, need, have } => {
                write!(f, "buffer {buffer} has room for {have} elements and needs {need}")
            }
            #[cfg(feature = "std")]
            Error::OutOfMemory { buffer, bytes } => {
                write!(f, "memory allocation failed: buffer {buffer} takes {bytes} bytes")
            }
            Error::ModelMismatch => {
                write!(f, "the plan is not this model's: make a new one with the model's Config::plan")
            }
            Error::OtherModel => {
                write!(
                    f,
                    "the sequence was begun with another model: begin again at position 0, or use a state per model"
                )
            }
            Error::Rounding => {
                write!(f, "this thread or task does not round to nearest: set the rounding mode back to the default")
            }
            Error::Token { token, vocab_size } => {
                write!(f, "token {token} is outside the vocabulary of {vocab_size}")
            }
            Error::Position { pos, n_tokens, filled, max_seq } => write!(
                f,
                "{n_tokens} token(s) cannot be placed at position {pos}: {filled} of {max_seq} positions are filled"
            ),
            Error::Batch { n_tokens, batch } => {
                write!(f, "{n_tokens} tokens in one call: this state takes 1 to {batch}")
            }
            Error::NotReady => {
                write!(f, "no finished forward pass for this row: call begin, then step until it is done")
            }
            Error::NotFinite { token } => {
                write!(f, "the logit of token {token} is not a finite number: the weights are damaged")
            }
            Error::AllMasked => write!(f, "every logit is minus infinity: leave at least one token that may be picked"),
            Error::Setting { name, value, rule } => write!(f, "{name} is {value}, but {rule}"),
            Error::TokenizerTruncated { token, vocab_size, have } => write!(
                f,
                "the tokenizer ends ({have} bytes) inside the entry of token {token} of {vocab_size}: it is cut short, \
                 damaged, or belongs to another model"
            ),
            Error::TokenizerEntry { token, rule } => {
                write!(f, "the tokenizer's entry of token {token} is damaged: {rule}")
            }
        }
    }
}

impl core::error::Error for Error {}
