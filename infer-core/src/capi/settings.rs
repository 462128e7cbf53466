//! Settings of a context: how tokens are picked, and which kernels compute.

use super::context::{infer_context, initialised, native};
use super::error::{call, infer_error};
use crate::error::Error;
use crate::kernels::Kernels;
use crate::sampler::Sampler;

/// Implementations of the inner loops. They differ in speed only: all give the same bits.
#[repr(C)]
pub enum infer_kernels {
    /// The default: the best ones for the machine that the archive was built for or, where it can
    /// find out, runs on.
    INFER_KERNELS_NATIVE = 0,
    /// The portable ones.
    INFER_KERNELS_SCALAR = 1,
    /// For a Cortex-M with FPU and the DSP extension, an optional part of the M33 and M55. On
    /// thumbv7em they are the native ones.
    INFER_KERNELS_CORTEX_M_DSP = 2,
    /// For a Cortex-M with Helium, its vector extension: M55 and M85.
    INFER_KERNELS_HELIUM = 3,
}

/// Sets how infer_sample picks: temperature 0 takes the most likely token, 1 samples the model's
/// distribution; `topp` keeps the most likely tokens up to that probability mass (0 and 1 turn it
/// off); `seed` starts the random numbers. The same seed gives the same tokens on every machine.
///
/// Errors: INFER_ERROR_SETTING for a temperature below 0, a topp outside 0 to 1, a NaN, or seed 0.
///
/// # Safety
/// `context` is NULL or points to an infer_context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_set_sampler(
    context: *mut infer_context,
    temperature: f32,
    topp: f32,
    seed: u64,
) -> infer_error {
    call(|| {
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        context.sampler = Sampler::new(temperature, topp, seed)?;
        Ok(())
    })
}

/// Limits beside `topp`: `top_k` keeps that many of the most likely tokens, `min_p` those that are
/// at least `min_p` times as likely as the most likely one. 0 turns either off; infer_set_sampler
/// turns both off.
///
/// Errors: INFER_ERROR_SETTING for a min_p outside 0 to 1, or a NaN.
///
/// # Safety
/// `context` is NULL or points to an infer_context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_set_limits(context: *mut infer_context, top_k: usize, min_p: f32) -> infer_error {
    call(|| {
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        Ok(context.sampler.limit(top_k, min_p)?)
    })
}

/// Chooses kernels: an infer_kernels. Without this call they are INFER_KERNELS_NATIVE. A program
/// that calls it links all kernels of its target: 29 KB more on a Cortex-M4 at opt-level 3.
///
/// Errors: INFER_ERROR_SETTING for another number, INFER_ERROR_UNSUPPORTED for kernels of another
/// target than that of the archive.
///
/// # Safety
/// `context` is NULL or points to an infer_context. With INFER_KERNELS_CORTEX_M_DSP the core has
/// the DSP extension. With INFER_KERNELS_HELIUM it has Helium, and the program has switched it on
/// together with the FPU (CPACR, CP10 and CP11). Neither the target nor this call can tell; a core
/// without them faults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infer_set_kernels(context: *mut infer_context, kernels: u32) -> infer_error {
    call(|| {
        // SAFETY: the caller passes NULL, or an infer_context that nothing else uses meanwhile.
        let context = unsafe { initialised(context) }?;
        context.kernels = match kernels {
            0 => native(),
            1 => Kernels::scalar(),
            #[cfg(thumb_fpu)]
            // SAFETY: the caller says by this number that the core has the DSP extension.
            2 => unsafe { Kernels::cortex_m_dsp() },
            #[cfg(thumb_fpu)]
            // SAFETY: the caller says by this number that the core has Helium, switched on.
            3 => unsafe { Kernels::helium() },
            #[cfg(not(thumb_fpu))]
            2 | 3 => return Err(Error::Unsupported { what: "kernels of a Cortex-M with FPU" }.into()),
            other => {
                let (value, rule) = (f64::from(other), "it must be an infer_kernels");
                return Err(Error::Setting { name: "kernels", value, rule }.into());
            }
        };
        Ok(())
    })
}
