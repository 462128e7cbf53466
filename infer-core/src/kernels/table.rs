//! The types of kernels, their inputs, and the table that holds one kernel of each type.

use crate::math::LANES;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

/// A table of kernels for one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Name of the instruction set.
    pub name: &'static str,
    pub(crate) matmul_f32: MatmulF32,
    pub(crate) matmul_q8: MatmulQ8,
    pub(crate) quantize: Quantize,
    pub(crate) attend: Attend,
    pub(crate) attend_q8: AttendQ8,
    pub(crate) rmsnorm: Rmsnorm,
    pub(crate) swiglu: Swiglu,
    /// Kernels for many tokens at once, where there are some.
    #[cfg(feature = "std")]
    pub(crate) batch: Option<Batch>,
}

/// `out[b][r] = dot(w[r], x[b])` for weights `w` (rows, cols), inputs `x` (batch, cols) and outputs
/// (batch, rows).
pub(crate) type MatmulF32 = fn(w: &[f32], cols: usize, x: &[f32], out: &mut Panel<'_>);

/// The same with int8 weights and activations: `x` is (batch, cols) as this table's [`Quantize`]
/// writes it, `xs` its scales (batch, cols / group_size). A group contributes
/// `(f32(Σ w·x) · ws) · xs`, the sum being exact in i32, to the lane of its index mod 8.
pub(crate) type MatmulQ8 = fn(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], out: &mut Panel<'_>);

/// Quantises `x` in groups: m = max|x|, s = m/127, q = round-half-even(x · (127/m)); q = s = 0
/// where m is below 2^-100. `q` is aligned to 4 and has two bytes per value, for kernels that
/// widen; others leave the second half alone.
pub(crate) type Quantize = fn(x: &[f32], group_size: usize, q: &mut [i8], s: &mut [f32]);

/// Attention of one token over `positions`, for the query heads that share one key/value head.
/// `att` is scratch (kv_mul, positions rounded up to a multiple of 8), `out` (kv_mul, head_size).
pub(crate) type Attend = fn(heads: &Heads<'_>, att: &mut [f32], out: &mut [f32]);

/// The input of [`Attend`].
pub(crate) struct Heads<'a> {
    /// (kv_mul, head_size)
    pub q: &'a [f32],
    /// (positions / 8 or more, head_size) of eight positions each, so that scores vectorise over
    /// positions.
    pub keys: &'a [[f32; LANES]],
    /// (positions or more, head_size)
    pub values: &'a [f32],
    /// Positions to attend to.
    pub positions: usize,
    pub head_size: usize,
    /// log2(e) / sqrt(head_size): weights are powers of 2.
    pub scale: f32,
}

/// Kernels for many tokens at once.
#[cfg(feature = "std")]
#[derive(Clone, Copy)]
pub(crate) struct Batch {
    /// The fewest tokens.
    pub tokens: usize,
    /// Rows of weights that are worked on together.
    pub rows: usize,
    pub matmul_f32: BatchF32,
    pub matmul_q8: BatchQ8,
    /// [`Quantize`] for `matmul_q8`, which says what it makes of the two bytes of a value.
    pub quantize: Quantize,
    pub attend: Option<AttendBatch>,
}

/// [`MatmulF32`] for [`Batch::tokens`] or more. `packed` is scratch of
/// [`packed_len`](crate::scratch::packed_len) numbers.
#[cfg(feature = "std")]
pub(crate) type BatchF32 = fn(w: &[f32], cols: usize, x: &[f32], packed: &mut [f32], out: &mut Panel<'_>);

/// [`MatmulQ8`] for [`Batch::tokens`] or more, groups of a multiple of 4, and 16 columns or more.
/// `x` is (batch, cols) of two bytes as [`Batch::quantize`] writes them.
#[cfg(feature = "std")]
pub(crate) type BatchQ8 = fn(w: &Q8Matrix<'_>, x: &[i8], xs: &[f32], packed: &mut [f32], out: &mut Panel<'_>);

/// [`Attend`] for several tokens: [`Batch::tokens`] or more queries. `att` is scratch of
/// [`att_len`](crate::scratch::att_len) numbers, `out` (rows, kv_mul · head_size).
#[cfg(feature = "std")]
pub(crate) type AttendBatch = fn(queries: &Queries<'_>, att: &mut [f32], out: &mut Panel<'_>);

/// The input of [`AttendBatch`]: the query heads of several tokens that share a key/value head.
#[cfg(feature = "std")]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // its kernels are those of AVX-512 so far
pub(crate) struct Queries<'a> {
    /// (rows, stride), of which kv_mul · head_size are the queries; the last row may end with them.
    pub q: &'a [f32],
    pub stride: usize,
    pub rows: usize,
    pub kv_mul: usize,
    /// As in [`Heads`].
    pub keys: &'a [[f32; LANES]],
    /// As in [`Heads`].
    pub values: &'a [f32],
    /// Positions that the first row attends to. Each row attends to one more than the row before.
    pub positions: usize,
    pub head_size: usize,
    /// As in [`Heads`].
    pub scale: f32,
}

/// [`Attend`] with an int8 KV cache. Scores are exact integer products of quantised queries and
/// keys. The weights, times the scales of the values, become 16-bit integers
/// `round(w · (s · (32767 / m)))` with the largest scale m; their products with the values are
/// exact too, over 256 positions at a time, whose sums are then added as f32.
pub(crate) type AttendQ8 = fn(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]);

/// The input of [`AttendQ8`].
pub(crate) struct HeadsQ8<'a> {
    /// Queries (kv_mul or more, head_size), one group per head.
    pub q: &'a [i8],
    /// Scales of the queries.
    pub q_scales: &'a [f32],
    /// (positions / 8 or more, head_size / 4, 8, 4)
    pub keys: &'a [i8],
    /// (positions / 8 or more, head_size, 8)
    pub values: &'a [i8],
    /// The scale of each position's keys.
    pub key_scales: &'a [f32],
    /// The scale of each position's values.
    pub value_scales: &'a [f32],
    /// Positions to attend to.
    pub positions: usize,
    pub head_size: usize,
    /// log2(e) / sqrt(head_size)
    pub scale: f32,
}

/// The most positions that one integer sum has room for: 256 · 32,767 · 127 < 2^31.
pub(crate) const Q8_POSITIONS: usize = 256;

/// `out = weight · x / sqrt(mean(x²) + eps)`.
pub(crate) type Rmsnorm = fn(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32);

/// `hb = silu(hb) · hb2`.
pub(crate) type Swiglu = fn(hb: &mut [f32], hb2: &[f32]);

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kernels").field("name", &self.name).finish()
    }
}
