//! What a Cortex-M with FPU computes in place of three definitions: the square root, the largest
//! number and the largest magnitude. The results are the same; the image `kernels` of
//! firmware-example compares them on the chip.
//!
//! The rules for assembly are those of `kernels/cortex_m.rs`.
#![allow(unsafe_code)]

use core::arch::asm;

/// [`sqrt`](super::sqrt) by the FPU's instruction, where libm's takes 160.
#[inline(always)]
pub fn sqrt(x: f32) -> f32 {
    let mut bits = x.to_bits();
    // SAFETY: the block reads and writes registers only, and declares all of them.
    unsafe {
        asm!(
            "vmov s0, {bits}",
            "vsqrt.f32 s0, s0",
            "vmov {bits}, s0",
            bits = inout(reg) bits,
            out("s0") _,
            options(pure, nomem, nostack), // a cumulative flag tells that the root was rounded
        );
    }
    f32::from_bits(bits)
}

/// Expands to a loop over `{n}` times four numbers, which `$load` puts into the registers `$x`.
/// Where one is larger than the largest so far, which is seldom, a branch leaves for its place
/// behind the loop and comes back. Comparing and taking it are given as the text in front of the
/// register and the text behind it.
macro_rules! largest_of_quads {
    (
        $load:literal,
        $compare:literal $branch:literal,
        $take:literal $taken:literal,
        $($x:literal $larger:literal $back:literal),*
    ) => {
        concat!(
            "2: ", $load, "\n",
            $($compare, $x, $branch, " ", $larger, "f\n", $back, ":\n",)*
            "subs {n}, {n}, #1\n",
            "bne 2b\n",
            "b 7f\n",
            $($larger, ": ", $take, $x, $taken, "\nb.w ", $back, "b\n",)*
            "7:",
        )
    };
}

/// [`largest_magnitude`](super::largest_magnitude): compares words as integers, four at a time.
pub fn largest_magnitude(x: &[f32]) -> f32 {
    let (quads, rest) = x.as_chunks::<4>();
    let mut max = rest.iter().fold(0, |max, x| max.max(x.to_bits() << 1));
    if !quads.is_empty() {
        // SAFETY: `quads` is not empty; the loop reads its `quads.len()` elements of four words
        // from its start, which is aligned to four as LDM asks for, and writes nothing.
        unsafe {
            asm!(
                largest_of_quads!(
                    "ldmia {x}!, {{r2-r5}}",
                    "cmp {max}, " ", lsl #1\nblo.w",
                    "lsl {max}, " ", #1",
                    "r2" "12" "3", "r3" "13" "4", "r4" "14" "5", "r5" "15" "6"
                ),
                x = inout(reg) quads.as_ptr() => _,
                n = inout(reg) quads.len() => _,
                max = inout(reg) max,
                out("r2") _, out("r3") _, out("r4") _, out("r5") _,
                options(nostack, readonly),
            );
        }
    }
    f32::from_bits(max >> 1)
}

/// [`max`](super::max), but for the sign of a zero that is the largest. A signalling NaN may count
/// as a number, here and there; arithmetic gives none.
pub fn max(x: &[f32]) -> f32 {
    let (quads, rest) = x.as_chunks::<4>();
    let mut max = rest.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    if !quads.is_empty() {
        // SAFETY: `quads` is not empty; the loop reads its `quads.len()` elements of four numbers
        // from its start, which is aligned to four as VLDM asks for, and writes nothing.
        unsafe {
            asm!(
                "vmov s4, {max}",
                largest_of_quads!(
                    "vldmia {x}!, {{s0-s3}}",
                    "vcmp.f32 " ", s4\nvmrs apsr_nzcv, fpscr\nbgt.w",
                    "vmov.f32 s4, " "",
                    "s0" "12" "3", "s1" "13" "4", "s2" "14" "5", "s3" "15" "6"
                ),
                "vmov {max}, s4",
                x = inout(reg) quads.as_ptr() => _,
                n = inout(reg) quads.len() => _,
                max = inout(reg) max,
                out("s0") _, out("s1") _, out("s2") _, out("s3") _, out("s4") _,
                options(nostack, readonly),
            );
        }
    }
    max
}
