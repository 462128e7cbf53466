//! Matrix products, by AMX or by the gemm crate.

use rayon::prelude::*;

use super::amx::{self, Panels};
use super::buffer::Buffer;
use super::step::Sizes;
use crate::model::precision::MatmulPrecision;

impl MatmulPrecision {
    /// What this machine computes in.
    pub fn describe(self) -> &'static str {
        if self.uses_amx() { "pairs of bf16 on AMX" } else { "f32" }
    }

    pub(super) fn uses_amx(self) -> bool {
        self == MatmulPrecision::High && amx::available()
    }
}

/// A view of a matrix: element (i, j) is `data[i * row + j * col]`. Either rows or columns are
/// contiguous.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

impl<'a> View<'a> {
    /// Row-major with `cols` columns.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        View { data, row: cols, col: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        View { row: self.col, col: self.row, ..self }
    }

    pub fn skip_rows(self, rows: usize) -> Self {
        View { data: &self.data[rows * self.row..], ..self }
    }

    pub fn skip_cols(self, cols: usize) -> Self {
        View { data: &self.data[cols * self.col..], ..self }
    }
}

/// A transposed matrix as the right-hand side of products.
#[derive(Default)]
pub(super) struct Transposed {
    panels: Panels, // with AMX
    rows: Buffer,   // without
    cols: usize,
}

impl Transposed {
    /// Takes the transpose, (rows, cols), of a row-major matrix.
    pub fn load(&mut self, sizes: &Sizes, matrix: View, (rows, cols): (usize, usize)) {
        if sizes.amx {
            return self.panels.load(matrix.t(), (rows, cols));
        }
        self.cols = cols;
        self.rows.resize(rows * cols);
        transpose(&mut self.rows, cols, matrix.data, matrix.row);
    }
}

/// Rows of `cols` numbers = columns of a matrix whose rows lie `row` apart.
pub(super) fn transpose(transposed: &mut [f32], cols: usize, matrix: &[f32], row: usize) {
    const ROWS: usize = 16; // few are fast
    transposed.par_chunks_mut(ROWS * cols).enumerate().for_each(|(i, rows)| {
        for (j, matrix) in matrix.chunks(row).enumerate() {
            let from = &matrix[i * ROWS..][..rows.len() / cols];
            from.iter().enumerate().for_each(|(i, x)| rows[i * cols + j] = *x);
        }
    });
}

/// The right-hand side of a product.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub view: View<'a>, // may be empty for AMX if there are panels
    pub panels: Option<&'a Panels>,
}

impl<'a> From<View<'a>> for Right<'a> {
    fn from(view: View<'a>) -> Self {
        Right { view, panels: None }
    }
}

impl<'a> From<(View<'a>, &'a Panels)> for Right<'a> {
    fn from((view, panels): (View<'a>, &'a Panels)) -> Self {
        Right { view, panels: Some(panels) }
    }
}

impl<'a> From<&'a Transposed> for Right<'a> {
    fn from(matrix: &'a Transposed) -> Self {
        (View::new(&matrix.rows, matrix.cols), &matrix.panels).into()
    }
}

impl Sizes {
    /// dst (m, n), whose rows lie `dst_row` apart, = a (m, k) · b (k, n), added to dst if `add`.
    pub fn matmul<'a>(
        &self,
        (m, n, k): (usize, usize, usize),
        dst: &mut [f32],
        dst_row: usize,
        a: View,
        b: impl Into<Right<'a>>,
        add: bool,
    ) {
        let b = b.into();
        let inside = |len: usize, i: usize, j: usize, row: usize, col: usize| (i - 1) * row + (j - 1) * col < len;
        assert!(m > 0 && n > 0 && k > 0 && n <= dst_row && inside(dst.len(), m, n, dst_row, 1));
        assert!(inside(a.data.len(), m, k, a.row, a.col));
        assert!(self.amx && b.panels.is_some() || inside(b.view.data.len(), k, n, b.view.row, b.view.col));
        match self.amx {
            true => amx::matmul((m, n, k), dst, dst_row, a, b, add),
            false => gemm((m, n, k), dst, dst_row, a, b.view, add),
        }
    }
}

/// [`Sizes::matmul`], which checks the arguments, in f32.
#[allow(unsafe_code)]
fn gemm((m, n, k): (usize, usize, usize), dst: &mut [f32], dst_row: usize, a: View, b: View, add: bool) {
    // SAFETY: the last element of each matrix, and with it every element, was found inside its
    // slice; the elements of dst are distinct and borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_row as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
