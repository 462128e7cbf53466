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
}

impl<'m> Matrix<'m> {
    /// The matrix that these bytes hold, or `None` if their number or alignment does not fit.
    pub(crate) fn from_bytes(bytes: &'m [u8], rows: usize, cols: usize, weights: WeightType) -> Option<Matrix<'m>> {
        match weights {
            WeightType::F32 => {
                let w = f32_slice(bytes)?;
                (w.len() == rows.checked_mul(cols)?).then_some(Matrix::F32 { w, rows, cols })
            }
            WeightType::Q8 { .. } => None,
        }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        match *self {
            Matrix::F32 { rows, .. } => rows,
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match *self {
            Matrix::F32 { cols, .. } => cols,
        }
    }

    /// The matrix of some of the rows, `None` if there are not that many.
    pub fn row_range(&self, range: Range<usize>) -> Option<Matrix<'m>> {
        match *self {
            Matrix::F32 { w, cols, .. } => {
                let rows = range.end.checked_sub(range.start)?;
                let w = w.get(range.start.checked_mul(cols)?..range.end.checked_mul(cols)?)?;
                Some(Matrix::F32 { w, rows, cols })
            }
        }
    }

    /// Writes one row as f32: the embedding of a token. `None` if there is no such row.
    pub(crate) fn copy_row(&self, row: usize, out: &mut [f32]) -> Option<()> {
        match self.row_range(row..row.checked_add(1)?)? {
            Matrix::F32 { w, .. } => out.iter_mut().zip(w).for_each(|(out, &w)| *out = w),
        }
        Some(())
    }
}

/// Bytes as f32, or `None` if they are misaligned or no multiple of four.
pub(crate) fn f32_slice(bytes: &[u8]) -> Option<&[f32]> {
    bytemuck::try_cast_slice(bytes).ok()
}
