//! Matrix products, by AMX or by the gemm crate.

use super::amx::{self, Panels, Right, Terms};
use super::buffer::Buffer;
use super::mat::{Mat, MatMut, transpose};
use crate::model::precision::{Dtype, MatmulPrecision};

/// The engine of all matrix products of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Products {
    /// Pairs of bf16, or bf16, also on AVX-512: see [`amx`].
    Amx(Terms),
    /// f32, by the gemm crate.
    Gemm,
}

impl Dtype {
    /// Whether this machine's processor multiplies such numbers.
    pub fn is_on_cpu(self) -> bool {
        match self {
            Dtype::Float32 => true,
            Dtype::Bfloat16 => amx::has_bfloat16(),
            Dtype::Float16 => false,
        }
    }

    /// The name of what the processor multiplies.
    pub fn on_cpu(self, precision: MatmulPrecision) -> &'static str {
        match Products::new(precision, self) {
            Products::Amx(Terms::Three) => "pairs of bf16 on AMX",
            Products::Amx(Terms::One) if amx::available() => "bf16 on AMX",
            Products::Amx(Terms::One) => "bf16 on AVX-512",
            Products::Gemm => "f32",
        }
    }
}

impl Products {
    /// The fastest engine of this machine that has the precision.
    pub fn new(precision: MatmulPrecision, dtype: Dtype) -> Products {
        match dtype {
            Dtype::Bfloat16 if amx::has_bfloat16() => Products::Amx(Terms::One),
            _ if precision != MatmulPrecision::Highest && amx::available() => Products::Amx(Terms::Three),
            _ => Products::Gemm,
        }
    }

    /// out = a · b, or out += a · b if `add`.
    ///
    /// # Panics
    /// The shapes do not match, or `b` was packed for another engine.
    pub fn multiply<'a>(self, out: MatMut, a: Mat, b: impl Into<Right<'a>>, add: bool) {
        match (self, b.into()) {
            (Products::Amx(terms), b) => amx::multiply(out, a, b, add, terms),
            (Products::Gemm, Right::Plain(b)) => gemm(out, a, b, add),
            (Products::Gemm, Right::Packed(_)) => unreachable!("only AMX takes panels"),
        }
    }

    /// Packs a right-hand side of many products, if that makes them faster.
    pub fn pack(self, panels: &mut Panels, matrix: Mat) {
        if matches!(self, Products::Amx(_)) {
            panels.load(matrix);
        }
    }

    /// The operand that this engine takes: the matrix itself, or the panels that
    /// [`pack`](Self::pack) filled.
    pub fn right<'a>(self, matrix: Mat<'a>, panels: &'a Panels) -> Right<'a> {
        match self {
            Products::Amx(_) => Right::Packed(panels),
            Products::Gemm => Right::Plain(matrix),
        }
    }
}

impl<'a> From<Mat<'a>> for Right<'a> {
    fn from(matrix: Mat<'a>) -> Self {
        Right::Plain(matrix)
    }
}

/// The transpose of a matrix, as the right-hand side of many products.
#[derive(Default)]
pub(super) struct Transposed {
    panels: Panels, // for AMX
    rows: Buffer,   // for gemm
    cols: usize,
}

impl Transposed {
    /// Takes the transpose of a matrix with contiguous rows.
    pub fn load(&mut self, products: Products, matrix: Mat) {
        if matches!(products, Products::Amx(_)) {
            return self.panels.load(matrix.t());
        }
        let (rows, cols) = matrix.shape();
        self.cols = rows;
        self.rows.resize(rows * cols);
        transpose(&mut self.rows, matrix);
    }

    /// The operand that this engine takes: the matrix itself, or the panels that
    /// [`load`](Self::load) filled.
    pub fn right(&self, products: Products) -> Right<'_> {
        match products {
            Products::Amx(_) => Right::Packed(&self.panels),
            Products::Gemm => Right::Plain(Mat::new(&self.rows, self.cols)),
        }
    }
}

#[allow(unsafe_code)]
fn gemm(mut out: MatMut, a: Mat, b: Mat, add: bool) {
    let ((m, n), (_, k)) = (out.shape(), a.shape());
    assert!(a.shape() == (m, k) && b.shape() == (k, n));
    let (out_row, (a_row, a_col), (b_row, b_col)) = (out.stride(), a.strides(), b.strides());
    // SAFETY: gemm reads m x k elements of a and k x n of b, and writes m x n of out. These are the
    // shapes of the views, which hold every element (see `Mat` and `MatMut`); the elements of out
    // are distinct, as its columns are fewer than its stride, and out is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data().as_mut_ptr(),
            1,
            out_row as isize,
            add,
            a.data().as_ptr(),
            a_col as isize,
            a_row as isize,
            b.data().as_ptr(),
            b_col as isize,
            b_row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
