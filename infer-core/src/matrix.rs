//! A matrix of weights, borrowed from the model file.

use core::ops::Range;

use crate::config::WeightType;

/// Weights of a linear map, row major: row r holds the `cols` weights of output r.
///
/// The weight type is matched inside the matrix product and the embedding, and nowhere else.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'m> {
    /// 4 bytes per weight.
    F32 {
        /// rows · cols weights.
        w: &'m [f32],
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// 1 byte per weight and a scale per group.
    Q8(Q8Matrix<'m>),
}

/// A matrix in int8: weight i of the flattened matrix is `q[i] · s[i / group_size]`.
#[derive(Clone, Copy, Debug)]
pub struct Q8Matrix<'m> {
    /// rows · cols weights.
    pub q: &'m [i8],
    /// rows · cols / group_size scales.
    pub s: &'m [f32],
    /// Outputs.
    pub rows: usize,
    /// Inputs; a multiple of the group size, so that no group crosses rows.
    pub cols: usize,
    /// Weights that share a scale.
    pub group_size: usize,
}

impl<'m> Matrix<'m> {
    /// The matrix that these bytes hold, or `None` if their number or alignment does not fit.
    pub(crate) fn from_bytes(bytes: &'m [u8], rows: usize, cols: usize, weights: WeightType) -> Option<Matrix<'m>> {
        match weights {
            WeightType::F32 => {
                let w = f32_slice(bytes)?;
                (w.len() == rows.checked_mul(cols)?).then_some(Matrix::F32 { w, rows, cols })
            }
            WeightType::Q8 { group_size } => {
                let n = rows.checked_mul(cols)?;
                let (q, s) = bytes.split_at_checked(n)?;
                let (q, s) = (bytemuck::try_cast_slice(q).ok()?, f32_slice(s)?);
                (Some(s.len()) == n.checked_div(group_size)).then_some(Matrix::Q8(Q8Matrix {
                    q,
                    s,
                    rows,
                    cols,
                    group_size,
                }))
            }
        }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        match *self {
            Matrix::F32 { rows, .. } | Matrix::Q8(Q8Matrix { rows, .. }) => rows,
        }
    }

    /// Type of the weights.
    #[cfg(feature = "std")]
    pub(crate) fn weights(&self) -> WeightType {
        match *self {
            Matrix::F32 { .. } => WeightType::F32,
            Matrix::Q8(Q8Matrix { group_size, .. }) => WeightType::Q8 { group_size },
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match *self {
            Matrix::F32 { cols, .. } | Matrix::Q8(Q8Matrix { cols, .. }) => cols,
        }
    }

    /// The matrix of a range of the rows, `None` if there are not that many.
    pub fn row_range(&self, range: Range<usize>) -> Option<Matrix<'m>> {
        let cols = self.cols();
        let rows = range.end.checked_sub(range.start)?;
        let (start, end) = (range.start.checked_mul(cols)?, range.end.checked_mul(cols)?);
        match *self {
            Matrix::F32 { w, .. } => Some(Matrix::F32 { w: w.get(start..end)?, rows, cols }),
            Matrix::Q8(Q8Matrix { q, s, group_size, .. }) => {
                let groups = start.checked_div(group_size)?..end.checked_div(group_size)?;
                Some(Matrix::Q8(Q8Matrix { q: q.get(start..end)?, s: s.get(groups)?, rows, cols, group_size }))
            }
        }
    }

    /// Writes one row as f32: the embedding of a token. `None` if there is no such row.
    pub(crate) fn copy_row(&self, row: usize, out: &mut [f32]) -> Option<()> {
        match self.row_range(row..row.checked_add(1)?)? {
            Matrix::F32 { w, .. } => out.iter_mut().zip(w).for_each(|(out, &w)| *out = w),
            Matrix::Q8(Q8Matrix { q, s, group_size, .. }) => {
                let group_size = group_size.max(1);
                for ((out, q), s) in out.chunks_mut(group_size).zip(q.chunks(group_size)).zip(s) {
                    out.iter_mut().zip(q).for_each(|(out, &q)| *out = f32::from(q) * s);
                }
            }
        }
        Some(())
    }
}

/// A matrix, and where its product with the input goes: (rows of the input, rows of the matrix).
pub(crate) struct Product<'a> {
    pub w: Matrix<'a>,
    pub out: &'a mut [f32],
}

/// The rows of an (n, width) matrix; none if the width is 0.
///
/// `zip` asks `chunks_exact` for its length: a division by a width that the compiler does not
/// always know to be positive. Built for size, that leaves a panic, and this function has no
/// division. It is slower for short rows in an inner loop.
pub(crate) fn rows_of<T>(mut matrix: &[T], width: usize) -> impl Iterator<Item = &[T]> {
    core::iter::from_fn(move || {
        let (row, rest) = matrix.split_at_checked(width)?;
        matrix = rest;
        (width > 0).then_some(row)
    })
}

/// [`rows_of`], mutable.
pub(crate) fn rows_of_mut<T>(mut matrix: &mut [T], width: usize) -> impl Iterator<Item = &mut [T]> {
    core::iter::from_fn(move || matrix.split_off_mut(..width).filter(|_| width > 0))
}

/// Bytes as f32, or `None` if they are misaligned or no multiple of four.
pub(crate) fn f32_slice(bytes: &[u8]) -> Option<&[f32]> {
    bytemuck::try_cast_slice(bytes).ok()
}

/// The first `rows` rows of a (batch, width) buffer.
pub(crate) fn prefix<T>(buffer: &mut [T], rows: usize, width: usize) -> &mut [T] {
    let len = buffer.len().min(rows * width);
    buffer.split_at_mut_checked(len).map_or(&mut [], |(rows, _)| rows)
}
