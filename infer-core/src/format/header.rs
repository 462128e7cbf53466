//! The header of a model file, in its three versions.

use crate::config::{Config, WeightType};
use crate::error::Error;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the file.
    pub version: Version,
    /// Hyperparameters; `weights` is `Q8` exactly for version 2.
    pub config: Config,
}

impl Config {
    /// Reads the header of a model file of any version; the rest of the file need not be there.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::UnknownVersion`], [`Error::Header`] or [`Error::GroupSize`].
    pub const fn from_header(bytes: &[u8]) -> Result<Config, Error> {
        match Header::parse(bytes) {
            Ok(header) => Ok(header.config),
            Err(e) => Err(e),
        }
    }
}

impl Header {
    /// Reads and checks a header; the tensors need not be there.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::UnknownVersion`], [`Error::Header`] or [`Error::GroupSize`].
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
    /// [`Error::Truncated`], [`Error::UnknownVersion`] or [`Error::Header`].
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

    /// The header's bytes: the first [`size`](Header::size) of the array.
    ///
    /// # Errors
    /// The configuration breaks a rule, or its weight type is not that of the version.
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
            Version::V0 => write_fields(&mut out, 0, &fields),
            Version::V1 | Version::V2 => {
                let version = if let Version::V1 = self.version { 1 } else { 2 };
                write_fields(&mut out, 0, &[MAGIC as i32, version]);
                write_fields(&mut out, 8, &fields);
                out[36] = config.shared_classifier as u8;
                write_fields(&mut out, 37, &[group_size]);
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
        Ok(config) => Ok(Header { version: Version::V0, config }),
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
        Ok(config) => Ok(Header { version, config }),
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
    let config =
        Config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, shared_classifier, weights };
    match config.check_shape() {
        Ok(()) => Ok(config),
        Err(e) => Err(e),
    }
}

/// The i32 at a byte offset, `None` past the end.
pub(crate) const fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    match bytes.split_at_checked(at) {
        Some((_, [a, b, c, d, ..])) => Some(i32::from_le_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

const fn write_fields(out: &mut [u8; HEADER_V1], at: usize, fields: &[i32]) {
    let mut i = 0;
    while i < fields.len() {
        let bytes = fields[i].to_le_bytes();
        let mut j = 0;
        while j < 4 {
            if at + 4 * i + j < HEADER_V1 {
                out[at + 4 * i + j] = bytes[j];
            }
            j += 1;
        }
        i += 1;
    }
}
