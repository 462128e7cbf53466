//! Runs tests with other values of MXCSR, the floating point control register of x86-64, as another
//! library in the process may leave it.

use std::arch::asm;
use std::hint::black_box;

/// Rounding towards minus infinity, plus infinity and zero.
pub const ROUND: [u32; 3] = [0x2000, 0x4000, 0x6000];
/// Subnormal numbers count as 0: flush to zero, and denormals are zero.
pub const FLUSH: u32 = 0x8040;
/// All exceptions masked, round to nearest.
const DEFAULT: u32 = 0x1f80;

/// Runs `f` on this thread with these bits set.
pub fn with<T>(bits: u32, f: impl FnOnce() -> T) -> T {
    set(DEFAULT | bits);
    let result = black_box(f)();
    set(DEFAULT);
    result
}

#[allow(unsafe_code)]
fn set(mxcsr: u32) {
    // SAFETY: the instruction reads the four bytes of `mxcsr`. Its callers keep all exceptions
    // masked, and `with` restores the default before other code runs.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(readonly, nostack, preserves_flags)) }
}
