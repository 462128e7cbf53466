//! Views of matrices that lie in slices.

use std::ops::Range;

use rayon::prelude::*;

/// A matrix in a slice: element (i, j) is `data[i * row_stride + j * col_stride]`, and every
/// element is inside. Either rows or columns are contiguous.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize, // at least 1
    cols: usize, // at least 1
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// All of `data`, in rows of `cols` numbers.
    ///
    /// # Panics
    /// `data` is empty or ends within a row.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        Mat { data, rows: whole_rows(data, cols), cols, row_stride: cols, col_stride: 1 }
    }

    /// Rows and columns.
    pub fn shape(self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Distances in memory from a row to the next, and from a column to the next.
    pub fn strides(self) -> (usize, usize) {
        (self.row_stride, self.col_stride)
    }

    /// The slice, which begins with element (0, 0).
    pub fn data(self) -> &'a [f32] {
        self.data
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The part in these rows and columns.
    ///
    /// # Panics
    /// The part is empty or not inside.
    pub fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= self.rows && cols.start < cols.end && cols.end <= self.cols);
        let data = &self.data[rows.start * self.row_stride + cols.start * self.col_stride..];
        Mat { data, rows: rows.len(), cols: cols.len(), ..self }
    }

    /// The part in these rows.
    ///
    /// # Panics
    /// As [`block`](Self::block).
    pub fn rows(self, rows: Range<usize>) -> Self {
        self.block(rows, 0..self.cols)
    }

    /// The part in these columns.
    ///
    /// # Panics
    /// As [`block`](Self::block).
    pub fn cols(self, cols: Range<usize>) -> Self {
        self.block(0..self.rows, cols)
    }
}

/// A matrix to write to: element (i, j) is `data[i * row_stride + j]`, with j < `row_stride`, and
/// every element is inside.
pub(super) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize, // at least 1
    cols: usize, // at least 1
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// All of `data`, in rows of `cols` numbers.
    ///
    /// # Panics
    /// `data` is empty or ends within a row.
    pub fn new(data: &'a mut [f32], cols: usize) -> Self {
        MatMut { rows: whole_rows(data, cols), data, cols, row_stride: cols }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Distance in memory from a row to the next.
    pub fn stride(&self) -> usize {
        self.row_stride
    }

    /// The slice, which begins with element (0, 0).
    pub fn data(&mut self) -> &mut [f32] {
        self.data
    }

    /// The part in these rows and columns.
    ///
    /// # Panics
    /// The part is empty or not inside.
    pub fn block(&mut self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows && cols.start < cols.end && cols.end <= self.cols);
        let data = &mut self.data[rows.start * self.row_stride + cols.start..];
        MatMut { data, rows: rows.len(), cols: cols.len(), row_stride: self.row_stride }
    }
}

fn whole_rows(data: &[f32], cols: usize) -> usize {
    assert!(!data.is_empty() && data.len().is_multiple_of(cols), "{} numbers in rows of {cols}", data.len());
    data.len() / cols
}

/// Writes the transpose of a matrix with contiguous rows.
pub(super) fn transpose(transposed: &mut [f32], matrix: Mat) {
    const ROWS: usize = 16; // few are fast
    assert!(matrix.col_stride == 1);
    let cols = matrix.rows;
    transposed.par_chunks_mut(ROWS * cols).enumerate().for_each(|(i, rows)| {
        for (j, matrix) in matrix.data.chunks(matrix.row_stride).take(cols).enumerate() {
            let from = &matrix[i * ROWS..][..rows.len() / cols];
            from.iter().enumerate().for_each(|(i, x)| rows[i * cols + j] = *x);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(m: Mat) -> Vec<Vec<f32>> {
        let ((rows, cols), (row, col)) = (m.shape(), m.strides());
        (0..rows).map(|i| (0..cols).map(|j| m.data()[i * row + j * col]).collect()).collect()
    }

    #[test]
    fn views_show_the_elements_they_name() {
        let data: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let m = Mat::new(&data, 4);
        assert_eq!(elements(m.rows(1..3).cols(1..3)), [[5.0, 6.0], [9.0, 10.0]]);
        assert_eq!(elements(m.t().rows(1..3)), [[1.0, 5.0, 9.0], [2.0, 6.0, 10.0]]);
        assert_eq!(elements(m.t().block(3..4, 1..3).t()), [[7.0], [11.0]]);
        let mut transposed = vec![0.0; 6];
        transpose(&mut transposed, m.cols(2..4));
        assert_eq!(transposed, [2.0, 6.0, 10.0, 3.0, 7.0, 11.0]);
        let mut data = data.clone();
        let mut m = MatMut::new(&mut data, 4);
        let mut block = m.block(1..3, 1..3);
        block.data()[0] = -1.0;
        assert_eq!((block.shape(), block.stride(), data[5]), ((2, 2), 4, -1.0));
    }

    #[test]
    #[should_panic]
    fn a_view_stays_inside() {
        let _ = Mat::new(&[0.0; 12], 4).t().rows(2..5);
    }
}
