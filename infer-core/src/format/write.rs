//! Writes model files: every exporter goes through [`write`].

use std::borrow::Cow;
use std::io;
use std::vec;
use std::vec::Vec;

use super::header::Header;
use super::layout::{Tensor, TensorName};
use crate::config::{Config, WeightType};
use crate::error::Error;
use crate::quant::quantize_group;

/// Why a model file could not be written.
#[derive(Debug)]
#[non_exhaustive]
pub enum WriteError {
    /// The configuration breaks a rule, or its weight type is not that of the version.
    Format(Error),
    /// The writer failed, or `values` did.
    Io(io::Error),
    /// A weight is NaN or infinite.
    NotFinite {
        /// Tensor of the weight.
        name: TensorName,
        /// Layer of the weight, 0 for a tensor that is there once.
        layer: usize,
        /// Place of the weight in the matrix.
        index: usize,
    },
    /// The caller's matrix has another size than the header's.
    Size {
        /// Tensor of the matrix.
        name: TensorName,
        /// Layer of the matrix, 0 for a tensor that is there once.
        layer: usize,
        /// Weights that the header asks for.
        need: usize,
        /// Weights given.
        have: usize,
    },
}

/// Writes a model file: the header, then the tensors in file order.
///
/// `values(name, layer)` gives the weights of one matrix or norm, (rows, cols) as in
/// [`Header::layout`]. It is asked once for each, in file order, and the matrix is dropped before
/// the next one is asked for, so that a model of any size needs the memory of its largest matrix.
/// Version 2 stores them as int8 in the groups of the header's weight type; their bytes are those
/// of llama2.c's exporter. Version 0 also asks for its tables of rotary angles, which
/// [`rotary_table`] computes for a model that has brought none.
///
/// Calls of `write_all` are large where matrices are: a file needs no buffer around it.
///
/// ```
/// use infer_core::format::{Header, TensorName, Version, write};
/// use infer_core::{Config, Error};
///
/// let config = Config::new(8, 12, 2, 2, 30, 16).quantized()?; // int8, in groups of 4
/// let mut file = Vec::new();
/// write(&mut file, &Header::new(Version::V2, config), |name, _layer| {
///     Ok(match name {
///         TensorName::RmsAtt | TensorName::RmsFfn | TensorName::RmsFinal => vec![1.0; 8].into(),
///         TensorName::TokEmb => vec![0.5; 30 * 8].into(),
///         TensorName::W1 | TensorName::W2 | TensorName::W3 => vec![-0.25; 12 * 8].into(),
///         _ => vec![0.125; 8 * 8].into(),
///     })
/// })
/// .unwrap();
/// assert_eq!(Config::from_header(&file)?, config);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// [`WriteError`]; the output is then incomplete.
pub fn write<'w>(
    out: &mut impl io::Write,
    header: &Header,
    mut values: impl FnMut(TensorName, usize) -> io::Result<Cow<'w, [f32]>>,
) -> Result<(), WriteError> {
    let (bytes, layout) = (header.to_bytes()?, header.layout()?);
    out.write_all(bytes.get(..header.size()).unwrap_or_default())?;
    for tensor in layout.iter() {
        let Tensor { name, rows, cols, .. } = tensor;
        for layer in 0..tensor.count {
            let values = values(name, layer)?;
            let (need, have) = (rows * cols, values.len());
            if have != need {
                return Err(WriteError::Size { name, layer, need, have });
            }
            if let Some(index) = values.iter().position(|w| !w.is_finite()) {
                return Err(WriteError::NotFinite { name, layer, index });
            }
            match tensor.weights {
                WeightType::F32 => out.write_all(bytemuck::cast_slice(&values))?,
                WeightType::Q8 { group_size } => write_q8(out, &values, group_size)?,
            }
        }
    }
    Ok(())
}

/// Writes a matrix in int8: all weights, then all scales. Only the scales are kept: weights are
/// quantised in pieces, as a second matrix would take a quarter of the first one's memory.
fn write_q8(out: &mut impl io::Write, values: &[f32], group_size: usize) -> io::Result<()> {
    const PIECE: usize = 1 << 16; // weights, rounded up to whole groups
    let piece = PIECE.next_multiple_of(group_size);
    let mut q = vec![0i8; piece.min(values.len())];
    let mut scales = Vec::with_capacity(values.len() / group_size);
    for values in values.chunks(piece) {
        let q = &mut q[..values.len()];
        let groups = values.chunks_exact(group_size).zip(q.chunks_exact_mut(group_size));
        scales.extend(groups.filter_map(|(w, q)| quantize_group(w, q))); // all are finite
        out.write_all(bytemuck::cast_slice(q))?;
    }
    out.write_all(bytemuck::cast_slice(&scales))
}

/// A table of version 0 (seq_len, head_size / 2): cosines of the rotary angles for
/// [`TensorName::FreqCisReal`], sines for [`TensorName::FreqCisImag`]. `None` for other tensors.
///
/// Readers skip the tables. PyTorch's cosines differ from these in the last bit here and there, and
/// so may those of another platform's math library.
///
/// ```
/// use infer_core::Config;
/// use infer_core::format::{TensorName, rotary_table};
///
/// let config = Config::new(8, 12, 2, 2, 30, 16);
/// let cosines = rotary_table(&config, TensorName::FreqCisReal).unwrap();
/// assert_eq!((cosines.len(), &cosines[..3]), (16 * 2, &[1.0, 1.0, 1f32.cos()][..]));
/// assert_eq!(rotary_table(&config, TensorName::Wq), None);
/// ```
pub fn rotary_table(config: &Config, name: TensorName) -> Option<Vec<f32>> {
    let part: fn(f32) -> f32 = match name {
        TensorName::FreqCisReal => f32::cos,
        TensorName::FreqCisImag => f32::sin,
        _ => return None,
    };
    let head_size = config.head_size();
    let pairs = 0..head_size / 2;
    let angles = (0..config.seq_len).flat_map(|pos| pairs.clone().map(move |i| (pos, i)));
    Some(angles.map(|(pos, i)| part(pos as f32 * config.rope.frequency(i, head_size))).collect())
}

impl From<Error> for WriteError {
    fn from(e: Error) -> WriteError {
        WriteError::Format(e)
    }
}

impl From<io::Error> for WriteError {
    fn from(e: io::Error) -> WriteError {
        WriteError::Io(e)
    }
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WriteError::Format(e) => e.fmt(f),
            WriteError::Io(e) => e.fmt(f),
            WriteError::NotFinite { name, layer, index } => {
                let name = name.as_str();
                write!(f, "weight {index} of {name} of layer {layer} is not a finite number")
            }
            WriteError::Size { name, layer, need, have } => {
                let name = name.as_str();
                write!(f, "{name} of layer {layer} has {have} weights, and the header asks for {need}")
            }
        }
    }
}

impl std::error::Error for WriteError {}
