//! What a step or an update asks of a GPU: memory, products and kernels. The driver gives it,
//! or the shim.

use super::kernels::Kind;
use crate::model::dropout::Dropout;
use crate::model::precision::Dtype;
use crate::model::rates::Rates;

/// A GPU. Its memory is counted in words of 4 bytes, f32 or u32, and named by addresses.
pub trait Gpu {
    /// Memory that is freed when it is dropped.
    type Memory: Memory;
    type Error;

    /// What its kernels are made for.
    fn kind(&self) -> Kind;
    /// Allocates words of any value.
    fn alloc(&self, words: usize) -> Result<Self::Memory, Self::Error>;
    fn upload<T: bytemuck::Pod>(&self, address: u64, values: &[T]) -> Result<(), Self::Error>;
    /// Waits for everything before.
    fn download(&self, address: u64, values: &mut [f32]) -> Result<(), Self::Error>;
    /// Launches a kernel with blocks of [`THREADS`](super::kernels::THREADS).
    fn launch(&self, kernel: &'static str, grid: [usize; 3], args: &[Arg]) -> Result<(), Self::Error>;
    fn multiply(&self, product: &Product) -> Result<(), Self::Error>;
}

/// Memory of a [`Gpu`].
pub trait Memory {
    fn address(&self) -> u64;
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub enum Arg {
    /// A pointer, or a u64.
    Address(u64),
    I32(i32),
    F32(f32),
    /// A `Dropout` of common.cu.
    Dropout(DropoutArg),
    /// `Rates` of update.cu.
    Rates(Rates),
}

/// `Dropout` as the kernels have it: scale 0 drops nothing.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DropoutArg {
    pub seed: u64,
    pub threshold: u32,
    pub scale: f32,
}

impl Arg {
    /// A number that is small enough for an int.
    pub fn int(n: usize) -> Arg {
        Arg::I32(i32::try_from(n).expect("sizes are checked before"))
    }

    pub fn dropout(dropout: Option<Dropout>) -> Arg {
        Arg::Dropout(match dropout {
            Some(Dropout { seed, threshold, scale }) => DropoutArg { seed, threshold, scale },
            None => DropoutArg { seed: 0, threshold: 0, scale: 0.0 },
        })
    }

    /// Where the value is, which is what a launch takes.
    pub fn pointer(&self) -> *mut std::ffi::c_void {
        match self {
            Arg::Address(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::I32(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::F32(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Dropout(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Rates(x) => std::ptr::from_ref(x).cast_mut().cast(),
        }
    }
}

/// A matrix in memory, row-major: its rows begin `stride` numbers apart.
#[derive(Clone, Copy)]
pub struct Matrix {
    pub address: u64,
    pub stride: usize,
    pub dtype: Dtype,
    /// The matrix is the transpose of what is in memory.
    pub transposed: bool,
}

impl Matrix {
    pub fn new(address: u64, stride: usize, dtype: Dtype) -> Matrix {
        Matrix { address, stride, dtype, transposed: false }
    }

    /// The matrix without its first rows.
    pub fn skip_rows(self, rows: usize) -> Matrix {
        Matrix { address: self.address + (rows * self.stride * self.dtype.bytes()) as u64, ..self }
    }

    pub fn t(self) -> Matrix {
        Matrix { transposed: !self.transposed, ..self }
    }
}

/// out = a · b, or out += a · b. `out` is not transposed; a and b have the same format.
pub struct Product {
    /// Rows and columns of `out`, and columns of `a`.
    pub size: [usize; 3],
    pub out: Matrix,
    pub a: Matrix,
    pub b: Matrix,
    pub add: bool,
}
