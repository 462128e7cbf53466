//! The header of a model file, in its three versions.

use super::bytes::{read_i32, write_fields};
use super::extension::{self, Extension, SpecialTokens, TemplateName};
use crate::config::{Config, WeightType};
use crate::error::Error;
use crate::tokenizer::BOS;

/// First four bytes (little endian) of versions 1 and 2.
pub const MAGIC: u32 = 0x616b_3432;
/// Bytes of the header of version 0.
pub const HEADER_V0: usize = 28;
/// Bytes of the header of versions 1 and 2.
pub const HEADER_V1: usize = 256;

/// Version of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// llama2.c's first format: 28-byte header, f32.
    V0,
    /// 256-byte header, f32.
    V1,
    /// 256-byte header, int8 matrices in groups.
    V2,
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Header {
    /// Version of the file.
    pub version: Version,
    /// Hyperparameters; `weights` is `Q8` exactly for version 2.
    pub config: Config,
    /// The tokens that begin and end a text.
    pub tokens: SpecialTokens,
    /// The chat template.
    pub template: TemplateName,
}

impl Config {
    /// Reads the header of a model file of any version; the rest of the file need not be there.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub const fn from_header(bytes: &[u8]) -> Result<Config, Error> {
        match Header::parse(bytes) {
            Ok(header) => Ok(header.config),
            Err(e) => Err(e),
        }
    }
}

impl Header {
    /// A header with llama2.c's special tokens and no chat template.
    pub const fn new(version: Version, config: Config) -> Header {
        Header { version, config, tokens: SpecialTokens::LLAMA2, template: TemplateName::NONE }
    }

    /// The same with other special tokens.
    pub const fn with_tokens(mut self, tokens: SpecialTokens) -> Header {
        self.tokens = tokens;
        self
    }

    /// The same with a chat template.
    pub const fn with_template(mut self, template: TemplateName) -> Header {
        self.template = template;
        self
    }

    /// Reads and checks a header; the tensors need not be there.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::UnknownVersion`], [`Error::Header`] or [`Error::GroupSize`];
    /// from the extension also [`Error::Setting`] and [`Error::Token`].
    pub const fn parse(bytes: &[u8]) -> Result<Header, Error> {
        match Header::parse_any_group(bytes) {
            Ok(header) => match header.config.check() {
                Ok(()) => Ok(header),
                Err(e) => Err(e),
            },
            Err(e) => Err(e),
        }
    }

    /// As [`parse`](Header::parse), without the rule of group sizes: for programs that rewrite a
    /// file whose groups cross rows, as llama2.c exports it when hidden_dim is no multiple of the
    /// group size.
    ///
    /// # Errors
    /// As [`parse`](Header::parse), without [`Error::GroupSize`].
    pub const fn parse_any_group(bytes: &[u8]) -> Result<Header, Error> {
        let Some(first) = read_i32(bytes, 0) else {
            return Err(Error::Truncated { need: HEADER_V0 as u64, have: bytes.len() as u64 });
        };
        if first as u32 == MAGIC { parse_v1(bytes) } else { parse_v0(bytes) }
    }

    /// Bytes before the first tensor.
    pub const fn size(&self) -> usize {
        match self.version {
            Version::V0 => HEADER_V0,
            Version::V1 | Version::V2 => HEADER_V1,
        }
    }

    /// llama2.c's own fields say everything, so that there is no extension.
    pub const fn is_plain(&self) -> bool {
        self.extension().is_plain()
    }

    const fn extension(&self) -> Extension {
        let Config { rope, norm_eps, .. } = self.config;
        Extension { rope, norm_eps, tokens: self.tokens, template: self.template }
    }

    /// Whether a text ends where the model gives this token: [`BOS`] of the next one, or any EOS of
    /// a header that is not plain. Stories of plain models go on over EOS, as in llama2.c.
    pub const fn ends(&self, token: u32) -> bool {
        if self.is_plain() {
            return token == BOS;
        }
        let (mut bos, mut eos) = (self.tokens.bos(), self.tokens.eos());
        while let [id, rest @ ..] = bos {
            if *id == token {
                return true;
            }
            bos = rest;
        }
        while let [id, rest @ ..] = eos {
            if *id == token {
                return true;
            }
            eos = rest;
        }
        false
    }

    /// The header's bytes: the first [`size`](Header::size) of the array.
    ///
    /// # Errors
    /// The configuration breaks a rule, its weight type is not that of the version, or version 0
    /// has no room for what is not plain.
    pub const fn to_bytes(&self) -> Result<[u8; HEADER_V1], Error> {
        let config = &self.config;
        if let Err(e) = config.check() {
            return Err(e);
        }
        let group_size = match (self.version, config.weights) {
            (Version::V0 | Version::V1, WeightType::F32) => 0,
            (Version::V2, WeightType::Q8 { group_size }) => group_size as i32,
            _ => return Err(Error::Unsupported { what: "weight type in this file version" }),
        };
        let vocab_size = config.vocab_size as i32;
        let signed_vocab = match (self.version, config.shared_classifier) {
            (Version::V0, false) => -vocab_size,
            _ => vocab_size,
        };
        let fields = [
            config.dim as i32,
            config.hidden_dim as i32,
            config.n_layers as i32,
            config.n_heads as i32,
            config.n_kv_heads as i32,
            signed_vocab,
            config.seq_len as i32,
        ];
        let mut out = [0; HEADER_V1];
        match self.version {
            Version::V0 if !self.is_plain() => {
                let what = "rotary embeddings, epsilon, special tokens or template other than llama2.c's in version 0";
                return Err(Error::Unsupported { what });
            }
            Version::V0 => write_fields(&mut out, 0, &fields),
            Version::V1 | Version::V2 => {
                let version = if let Version::V1 = self.version { 1 } else { 2 };
                write_fields(&mut out, 0, &[MAGIC as i32, version]);
                write_fields(&mut out, 8, &fields);
                out[36] = config.shared_classifier as u8;
                write_fields(&mut out, 37, &[group_size]);
                if !self.is_plain() {
                    extension::write(&self.extension(), &mut out);
                }
            }
        }
        Ok(out)
    }
}

const fn parse_v0(bytes: &[u8]) -> Result<Header, Error> {
    if bytes.len() < HEADER_V0 {
        return Err(Error::Truncated { need: HEADER_V0 as u64, have: bytes.len() as u64 });
    }
    // The sign of vocab_size says whether the classifier is shared.
    let shared_classifier = match read_i32(bytes, 20) {
        Some(vocab_size) => vocab_size > 0,
        None => true,
    };
    match parse_fields(bytes, 0, true, shared_classifier, WeightType::F32) {
        Ok(config) => Ok(Header::new(Version::V0, config)),
        Err(e) => Err(e),
    }
}

const fn parse_v1(bytes: &[u8]) -> Result<Header, Error> {
    if bytes.len() < HEADER_V1 {
        return Err(Error::Truncated { need: HEADER_V1 as u64, have: bytes.len() as u64 });
    }
    let (version, weights) = match read_i32(bytes, 4) {
        Some(1) => (Version::V1, WeightType::F32),
        Some(2) => match read_i32(bytes, 37) {
            Some(group_size) if group_size > 0 => (Version::V2, WeightType::Q8 { group_size: group_size as usize }),
            group_size => {
                let value = match group_size {
                    Some(value) => value as i64,
                    None => 0,
                };
                return Err(Error::Header { field: "group_size", value, rule: "it must be at least 1" });
            }
        },
        Some(version) => return Err(Error::UnknownVersion { version }),
        None => return Err(Error::UnknownVersion { version: 0 }),
    };
    let shared_classifier = match bytes[36] {
        0 => false,
        1 => true,
        flag => {
            return Err(Error::Header { field: "shared_classifier", value: flag as i64, rule: "it must be 0 or 1" });
        }
    };
    match parse_fields(bytes, 8, false, shared_classifier, weights) {
        Ok(config) => match extension::read(bytes, config.vocab_size) {
            Ok(Some(Extension { rope, norm_eps, tokens, template })) => {
                let config = config.with_rope(rope).with_norm_eps(norm_eps);
                Ok(Header { version, config, tokens, template })
            }
            Ok(None) => Ok(Header::new(version, config)),
            Err(e) => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// Reads the seven i32 fields from byte `at` on, and checks them.
const fn parse_fields(
    bytes: &[u8],
    at: usize,
    signed_vocab: bool,
    shared_classifier: bool,
    weights: WeightType,
) -> Result<Config, Error> {
    const NAMES: [&str; 7] = ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"];
    let mut values = [0usize; 7];
    let mut i = 0;
    while i < 7 {
        let Some(value) = read_i32(bytes, at + 4 * i) else {
            return Err(Error::Truncated { need: (at + 28) as u64, have: bytes.len() as u64 });
        };
        let size = if signed_vocab && i == 5 { value.unsigned_abs() as i64 } else { value as i64 };
        if size <= 0 || size > i32::MAX as i64 {
            let rule = "it must be at least 1 and below 2^31";
            return Err(Error::Header { field: NAMES[i], value: value as i64, rule });
        }
        values[i] = size as usize;
        i += 1;
    }
    let [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len] = values;
    let mut config = Config::new(dim, hidden_dim, n_layers, n_heads, vocab_size, seq_len)
        .with_kv_heads(n_kv_heads)
        .with_weights(weights);
    config.shared_classifier = shared_classifier;
    match config.check_shape() {
        Ok(()) => Ok(config),
        Err(e) => Err(e),
    }
}
