//! The inner loops, in one file or folder per instruction set; a table of them is picked once.
//!
//! The scalar kernels define the result, and every other kernel must give the same bits (the
//! determinism contract in the crate's documentation). Kernels for a new core are a file here with
//! a table, and lines in this file that offer it; `tests.rs` and the image `kernels` of
//! firmware-example compare every table. `table.rs` has the types of kernels, `blocks.rs` and
//! `blocks_q8.rs` the walks over rows and heads.

#[cfg(all(target_arch = "x86_64", feature = "std"))]
mod avx2;
#[cfg(all(target_arch = "x86_64", feature = "std"))]
mod avx512;
#[cfg(all(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon")), feature = "std"))]
mod batch;
mod blocks;
#[cfg(any(all(target_arch = "x86_64", feature = "std"), all(target_arch = "aarch64", target_feature = "neon")))]
mod blocks_q8;
#[cfg(thumb_fpu)]
mod cortex_m;
#[cfg(thumb_fpu)]
mod helium;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
mod scalar;
mod table;

pub use table::Kernels;
#[cfg(feature = "std")]
pub(crate) use table::{AttendBatch, Batch, Queries};
pub(crate) use table::{Heads, HeadsQ8};

impl Kernels {
    /// The portable kernels, which define the result.
    pub const fn scalar() -> Kernels {
        scalar::SCALAR
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
        let simd = [avx2::avx2(), avx2::avx_vnni(), avx512::avx512(), avx512::avx512_vnni()];
        #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
        let simd = [Some(neon::NEON), neon::neon_dotprod()];
        #[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon"))))]
        let simd = [None];
        core::iter::once(Kernels::scalar()).chain(simd.into_iter().flatten())
    }
}

#[cfg(all(test, feature = "std"))]
mod tests;
