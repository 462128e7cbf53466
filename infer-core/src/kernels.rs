//! The inner loops, one file per instruction set, picked once at run time.
//!
//! The scalar kernels define the result: every other kernel must give the same bits (the
//! determinism contract in the crate's documentation). An ISA file holds kernels and nothing else.

use crate::math::LANES;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;

#[cfg(all(target_arch = "x86_64", feature = "std"))]
mod avx2;
#[cfg(all(target_arch = "x86_64", feature = "std"))]
mod avx512;
#[cfg(thumb_fpu)]
pub(crate) mod cortex_m;
#[cfg(thumb_fpu)]
mod helium;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
pub(crate) mod scalar;

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

/// What [`Attend`] reads.
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

/// [`Attend`] with an int8 KV cache. Scores are exact integer products of quantised queries and
/// keys. The weights, times the scales of the values, become 16-bit integers
/// `round(w · (s · (32767 / m)))` with the largest scale m; their products with the values are
/// exact too, over 256 positions at a time, whose sums are then added as f32.
pub(crate) type AttendQ8 = fn(heads: &HeadsQ8<'_>, att: &mut [f32], out: &mut [f32]);

/// What [`AttendQ8`] reads.
pub(crate) struct HeadsQ8<'a> {
    /// Queries (kv_mul or more, head_size), a group per head.
    pub q: &'a [i8],
    /// Scales of the queries.
    pub q_scales: &'a [f32],
    /// (positions / 8 or more, head_size / 4, 8, 4)
    pub keys: &'a [i8],
    /// (positions / 8 or more, head_size, 8)
    pub values: &'a [i8],
    /// Of each position.
    pub key_scales: &'a [f32],
    /// Of each position.
    pub value_scales: &'a [f32],
    /// Positions to attend to.
    pub positions: usize,
    pub head_size: usize,
    /// log2(e) / sqrt(head_size)
    pub scale: f32,
}

/// Positions whose integer products fit a sum: 256 · 32,767 · 127 < 2^31.
pub(crate) const Q8_POSITIONS: usize = 256;

/// `out = weight · x / sqrt(mean(x²) + 1e-5)`.
pub(crate) type Rmsnorm = fn(out: &mut [f32], x: &[f32], weight: &[f32]);

/// `hb = silu(hb) · hb2`.
pub(crate) type Swiglu = fn(hb: &mut [f32], hb2: &[f32]);

impl Kernels {
    /// The portable kernels, which define the result.
    pub const fn scalar() -> Kernels {
        Kernels {
            name: "scalar",
            matmul_f32: scalar::matmul_f32,
            matmul_q8: scalar::matmul_q8,
            quantize: scalar::quantize,
            attend: scalar::attend,
            attend_q8: scalar::attend_q8,
            rmsnorm: crate::math::rmsnorm,
            swiglu: crate::math::swiglu,
        }
    }

    /// The best kernels known at compile time: for targets without run-time detection.
    pub const fn native() -> Kernels {
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        return neon::NEON;
        #[cfg(all(thumb_fpu, not(thumb_dsp)))]
        return cortex_m::FPU;
        #[cfg(all(thumb_fpu, thumb_dsp))]
        return cortex_m::DSP;
        #[cfg(not(any(thumb_fpu, all(target_arch = "aarch64", target_feature = "neon"))))]
        Kernels::scalar()
    }

    /// The kernels of a Cortex-M with FPU and the DSP extension, for targets that do not tell
    /// whether the core has it: an optional part of the M33 and M55. On thumbv7em it is there, and
    /// [`native`](Kernels::native) takes them.
    ///
    /// # Safety
    /// The core has the DSP extension.
    #[cfg(thumb_fpu)]
    #[allow(unsafe_code)]
    pub const unsafe fn cortex_m_dsp() -> Kernels {
        cortex_m::DSP
    }

    /// The kernels of a Cortex-M with Helium, its vector extension: M55 and M85. The target does
    /// not tell whether a core has it.
    ///
    /// # Safety
    /// The core has Helium, and it is switched on (CPACR, as cortex-m-rt does for targets with
    /// FPU).
    #[cfg(thumb_fpu)]
    #[allow(unsafe_code)]
    pub const unsafe fn helium() -> Kernels {
        helium::HELIUM
    }

    /// The best kernels that this machine can run.
    #[cfg(feature = "std")]
    pub fn detect() -> Kernels {
        Kernels::all().last().unwrap_or(Kernels::scalar())
    }

    /// Every set of kernels that this machine can run, the best one last. They differ in speed
    /// only.
    #[cfg(feature = "std")]
    pub fn all() -> impl Iterator<Item = Kernels> {
        #[cfg(target_arch = "x86_64")]
        let simd = [avx2::avx2(), avx2::avx_vnni(), avx512::avx512()];
        #[cfg(not(target_arch = "x86_64"))]
        let simd = [cfg!(target_feature = "neon").then(Kernels::native)];
        core::iter::once(Kernels::scalar()).chain(simd.into_iter().flatten())
    }
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kernels").field("name", &self.name).finish()
    }
}
