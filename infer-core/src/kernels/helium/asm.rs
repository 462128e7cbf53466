//! What several kernels for Helium have in common: the guard against flushed numbers, and pieces of
//! assembly, which are macros as `asm!` takes text.

use core::arch::asm;

/// Numbers in a register.
pub(super) const VECTOR: usize = 4;

/// Runs a kernel, and returns whether no subnormal number came up, so that its results are those of
/// the contract.
#[inline(always)]
pub(super) fn exact(kernel: impl FnOnce()) -> bool {
    const IDC_UFC: u32 = 1 << 7 | 1 << 3;
    let flags: u32;
    // SAFETY: the block clears two cumulative flags, which Rust does not rely on, and writes FPSCR
    // otherwise as it was. All of these blocks keep their order, since each may touch memory.
    unsafe {
        asm!(
            "vmrs {t}, fpscr",
            "bic {t}, {t}, {flags}",
            "vmsr fpscr, {t}",
            t = out(reg) _,
            flags = const IDC_UFC,
            options(nostack),
        );
    }
    kernel();
    // SAFETY: the block reads FPSCR only.
    unsafe { asm!("vmrs {}, fpscr", out(reg) flags, options(nostack)) }
    flags & IDC_UFC == 0
}

/// Puts [`exp2`](crate::math::exp2) of q0 into q3; q1 and q2 are scratch. A flushed number changes
/// nothing: subnormal arguments and products vanish in the next sum.
macro_rules! exp2 {
    () => {
        "vadd.f32 q1, q0, {round}
        vsub.f32 q2, q1, {round}
        vsub.f32 q2, q0, q2
        vmul.f32 q3, q2, {g4}
        vadd.f32 q3, q3, {g3}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {g2}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {g1}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {g0}
        vmul.f32 q3, q3, q2
        vadd.f32 q3, q3, {one}
        vshl.i32 q1, q1, #23
        vadd.i32 q1, q1, {one}
        vmul.f32 q3, q3, q1"
    };
}
pub(super) use exp2;

/// Adds up eight lanes, in q4 and q5, into s16: [`sum_lanes`](crate::math::sum_lanes).
macro_rules! sum_lanes {
    () => {
        "vadd.f32 q4, q4, q5
        vadd.f32 s16, s16, s18
        vadd.f32 s17, s17, s19
        vadd.f32 s16, s16, s17"
    };
}
pub(super) use sum_lanes;
