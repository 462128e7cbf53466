//! The model files of llama2.c: header and tensor table. `docs/FORMAT.md` is the specification.
//!
//! A file version ends here: readers and exporters both walk the table that [`Header::layout`]
//! returns, in file order, and nothing else knows where a tensor lies.

use crate::config::{Config, WeightType, product, sum};
use crate::error::Error;
pub use crate::quant::quantize_group;

/// First four bytes (little endian) of versions 1 and 2.
pub const MAGIC: u32 = 0x616b_3432;
/// Bytes of the header of version 0.
pub const HEADER_V0: usize = 28;
/// Bytes of the header of versions 1 and 2.
pub const HEADER_V1: usize = 256;
/// Alignment of a model in memory, in bytes.
pub const ALIGN: usize = 4;
/// Most tensors (counting a stack of layers as one) that a file has.
const MAX_TENSORS: usize = 14;

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

/// The tensors of a model, by their names in llama2.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the field's standard terms; shapes are in Header::layout
pub enum TensorName {
    TokEmb,
    RmsAtt,
    Wq,
    Wk,
    Wv,
    Wo,
    RmsFfn,
    W1,
    W2,
    W3,
    RmsFinal,
    FreqCisReal,
    FreqCisImag,
    Wcls,
}

impl TensorName {
    /// The name as it is written in text.
    pub const fn as_str(self) -> &'static str {
        match self {
            TensorName::TokEmb => "tok_emb",
            TensorName::RmsAtt => "rms_att",
            TensorName::Wq => "wq",
            TensorName::Wk => "wk",
            TensorName::Wv => "wv",
            TensorName::Wo => "wo",
            TensorName::RmsFfn => "rms_ffn",
            TensorName::W1 => "w1",
            TensorName::W2 => "w2",
            TensorName::W3 => "w3",
            TensorName::RmsFinal => "rms_final",
            TensorName::FreqCisReal => "freq_cis_real",
            TensorName::FreqCisImag => "freq_cis_imag",
            TensorName::Wcls => "wcls",
        }
    }
}

/// Where one tensor, or one stack of equal tensors (one per layer), lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Which tensor.
    pub name: TensorName,
    /// `n_layers` for a stack, else 1.
    pub count: usize,
    /// Outputs of the matrix; 1 for a norm weight.
    pub rows: usize,
    /// Inputs of the matrix.
    pub cols: usize,
    /// Storage: in a `Q8` tensor each layer's `i8 q[rows*cols]` is directly followed by its
    /// `f32 s[rows*cols/group_size]`.
    pub weights: WeightType,
    /// Byte offset of the first layer from the start of the file.
    pub offset: u64,
    /// Bytes from one layer to the next.
    pub stride: u64,
}

impl Tensor {
    /// Bytes of the whole stack.
    pub const fn bytes(&self) -> u64 {
        self.stride * self.count as u64 // checked by Header::layout
    }
}

/// The tensor table of a file, in file order.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    tensors: [Option<Tensor>; MAX_TENSORS],
    /// Bytes from the start of the file to the end of the last tensor. A file may be longer
    /// (padding in flash).
    pub file_bytes: u64,
}

impl Layout {
    /// The tensors in file order.
    pub fn iter(&self) -> impl Iterator<Item = Tensor> + '_ {
        self.tensors.iter().flatten().copied()
    }

    /// The tensor of this name.
    pub fn get(&self, name: TensorName) -> Option<Tensor> {
        self.iter().find(|tensor| tensor.name == name)
    }
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

    /// The same, without the rule of group sizes: for programs that rewrite a file whose groups
    /// cross rows, as llama2.c exports it when hidden_dim is no multiple of the group size.
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

    /// The table of tensors, with byte offsets.
    ///
    /// # Errors
    /// The configuration breaks a rule, or a size exceeds 64 bits ([`Error::TooLarge`]).
    pub const fn layout(&self) -> Result<Layout, Error> {
        self.layout_with(true)
    }

    /// The table of a file of so many bytes. It differs from [`layout`](Header::layout) for a file
    /// of version 0 that has exactly the length without the rotary tables, which no reader needs.
    ///
    /// # Errors
    /// As [`layout`](Header::layout).
    pub const fn layout_of(&self, file_bytes: u64) -> Result<Layout, Error> {
        match self.layout_with(false) {
            Ok(layout) if layout.file_bytes == file_bytes => Ok(layout),
            _ => self.layout_with(true),
        }
    }

    const fn layout_with(&self, rotary_tables: bool) -> Result<Layout, Error> {
        use TensorName::*;
        if let Err(e) = self.config.check_shape() {
            return Err(e);
        }
        let c = &self.config;
        let (dim, hidden, kv_dim, layers, vocab) = (c.dim, c.hidden_dim, c.kv_dim(), c.n_layers, c.vocab_size);
        let f32_ = WeightType::F32;
        let w = c.weights;
        let wcls = if c.shared_classifier { 0 } else { 1 };
        let freq_cis = if rotary_tables { 1 } else { 0 };
        // (name, count, rows, cols, storage), in file order
        let v0 = [
            (TokEmb, 1, vocab, dim, f32_),
            (RmsAtt, layers, 1, dim, f32_),
            (Wq, layers, dim, dim, f32_),
            (Wk, layers, kv_dim, dim, f32_),
            (Wv, layers, kv_dim, dim, f32_),
            (Wo, layers, dim, dim, f32_),
            (RmsFfn, layers, 1, dim, f32_),
            (W1, layers, hidden, dim, f32_),
            (W2, layers, dim, hidden, f32_),
            (W3, layers, hidden, dim, f32_),
            (RmsFinal, 1, 1, dim, f32_),
            (FreqCisReal, freq_cis, c.seq_len, c.head_size() / 2, f32_),
            (FreqCisImag, freq_cis, c.seq_len, c.head_size() / 2, f32_),
            (Wcls, wcls, vocab, dim, f32_),
        ];
        let v1 = [
            (RmsAtt, layers, 1, dim, f32_),
            (RmsFfn, layers, 1, dim, f32_),
            (RmsFinal, 1, 1, dim, f32_),
            (TokEmb, 1, vocab, dim, w),
            (Wq, layers, dim, dim, w),
            (Wk, layers, kv_dim, dim, w),
            (Wv, layers, kv_dim, dim, w),
            (Wo, layers, dim, dim, w),
            (W1, layers, hidden, dim, w),
            (W2, layers, dim, hidden, w),
            (W3, layers, hidden, dim, w),
            (Wcls, wcls, vocab, dim, w),
        ];
        let mut shapes: &[(TensorName, usize, usize, usize, WeightType)] = match self.version {
            Version::V0 => &v0,
            Version::V1 | Version::V2 => &v1,
        };
        let mut tensors = [None; MAX_TENSORS];
        let mut rest: &mut [Option<Tensor>] = &mut tensors;
        let mut offset = self.size() as u64;
        while let [(name, count, rows, cols, weights), shapes_tail @ ..] = shapes {
            let Some((slot, rest_tail)) = rest.split_first_mut() else { break };
            if let WeightType::Q8 { group_size } = *weights
                && !matches!((*rows as u64).wrapping_mul(*cols as u64).checked_rem(group_size as u64), Some(0))
            {
                return Err(Error::GroupSize { group_size: group_size as i64, dim, hidden_dim: hidden });
            }
            let Some(stride) = tensor_bytes(*rows as u64, *cols as u64, *weights) else { return Err(Error::TooLarge) };
            let end = sum(&[Some(offset), product(&[stride, *count as u64])]);
            let Some(end) = end else { return Err(Error::TooLarge) };
            if *count > 0 {
                let (name, count, rows, cols, weights) = (*name, *count, *rows, *cols, *weights);
                *slot = Some(Tensor { name, count, rows, cols, weights, offset, stride });
            }
            offset = end;
            rest = rest_tail;
            shapes = shapes_tail;
        }
        Ok(Layout { tensors, file_bytes: offset })
    }
}

/// Bytes of one matrix in a file.
const fn tensor_bytes(rows: u64, cols: u64, weights: WeightType) -> Option<u64> {
    let Some(n) = product(&[rows, cols]) else { return None };
    match weights {
        WeightType::F32 => product(&[n, 4]),
        WeightType::Q8 { group_size } => match n.checked_div(group_size as u64) {
            Some(groups) => sum(&[Some(n), product(&[groups, 4])]),
            None => None,
        },
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
