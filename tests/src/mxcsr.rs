//! The floating point control register of x86-64, as other code of a process may have left it.

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
    // SAFETY: reads four bytes. Exceptions stay masked, and no other code of the tests relies on
    // how it rounds.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(readonly, nostack, preserves_flags)) }
}
