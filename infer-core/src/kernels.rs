//! The inner loops, one file per instruction set, picked once at run time.
//!
//! The scalar kernels define the result: every other kernel must give the same bits (the determinism contract in the
//! crate's documentation). An ISA file holds kernels and nothing else.

use crate::matrix::Q8Matrix;
use crate::panel::Panel;

pub(crate) mod scalar;

/// A table of kernels for one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Name of the instruction set.
    pub name: &'static str,
    pub(crate) matmul_f32: MatmulF32,
    pub(crate) matmul_q8: MatmulQ8,
    pub(crate) attend: Attend,
}

/// `out[b][r] = dot(w[r], x[b])` for weights `w` (rows, cols), inputs `x` (batch, cols) and outputs (batch, rows).
pub(crate) type MatmulF32 = fn(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>);

/// The same with int8 weights and activations: `x` is (batch, cols), `xs` its scales (batch, cols / group_size). A group
/// contributes `(f32(Σ w·x) · ws) · xs`, the sum being exact in i32, to the lane of its index mod 8.
pub(crate) type MatmulQ8 = fn(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>);

/// Attention of one query of one head, over the positions for which `att` has room:
/// `att = softmax(keys · q · scale)`, `out = Σ_t att[t] · values[t]`.
/// Shapes: q and out (head_size), keys and values (positions, head_size), att (positions).
pub(crate) type Attend = fn(q: &[f32], scale: f32, keys: &[f32], values: &[f32], att: &mut [f32], out: &mut [f32]);

impl Kernels {
    /// The portable kernels, which define the result.
    pub const fn scalar() -> Kernels {
        Kernels { name: "scalar", matmul_f32: scalar::matmul_f32, matmul_q8: scalar::matmul_q8, attend: scalar::attend }
    }

    /// The best kernels known at compile time: for targets without run-time detection.
    pub const fn native() -> Kernels {
        Kernels::scalar()
    }

    /// The best kernels that this machine can run.
    #[cfg(feature = "std")]
    pub fn detect() -> Kernels {
        Kernels::native()
    }
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kernels").field("name", &self.name).finish()
    }
}
