//! Where the tensors of a model file lie: one table for readers and writers.

use super::header::{Header, Version};
use crate::config::{WeightType, product, sum};
use crate::error::Error;

/// Alignment of a model in memory, in bytes.
pub const ALIGN: usize = 4;
/// Most tensors (counting a stack of layers as one) that a file has.
const MAX_TENSORS: usize = 14;

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

impl Header {
    /// The table of tensors, with byte offsets.
    ///
    /// # Errors
    /// The configuration breaks a rule, or a size exceeds 64 bits ([`Error::TooLarge`]).
    pub const fn layout(&self) -> Result<Layout, Error> {
        self.layout_with(true)
    }

    /// The table of a file of this length. It differs from [`layout`](Header::layout) for a file
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
