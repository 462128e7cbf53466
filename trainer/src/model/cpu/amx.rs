//! Matrix products on Intel's AMX: numbers of 16 bits, where f32 has 24, and sums in f32.
//!
//! AMX multiplies bf16, 16 times as many in a clock cycle as AVX-512 multiplies f32. A number is
//! split into two of them, x = x₁ + x₂, and three products are taken: x₁y₁ + x₁y₂ + x₂y₁ (Henry,
//! Tang and Heinecke 2019, arXiv:1904.06376). That is what PyTorch calls high precision of f32
//! products. The parts are rounded, so that what is missing, x₂y₂ and the rest of x and y, is at
//! most 2⁻¹⁵ of xy, of either sign. Near the ends of f32's range it is more: AMX takes subnormal
//! numbers, parts among them, as zero, and infinity gives NaN.
//!
//! Operands are packed into blocks of 32 x 32 numbers. A panel is a row of blocks along the inner
//! dimension.

#![allow(unsafe_code)]

mod pack;

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::products::{Right, View};
use pack::{Block, LANES, Lines, SIDE, Side, Square, pack};

/// Blocks of a panel, and panels of each side, at a time: together they stay in the second-level
/// cache.
const STEPS: usize = 8;
const LEFT_PANELS: usize = 8;
const RIGHT_PANELS: usize = 16;

/// Memory of a thread.
struct Scratch {
    left: Vec<Block>,
    right: Vec<Block>,
    lines: Lines,
    product: Square, // at the edges of a matrix
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

impl Scratch {
    const fn new() -> Scratch {
        Scratch { left: Vec::new(), right: Vec::new(), lines: Lines::ZERO, product: Square::ZERO }
    }
}

/// Whether products can use AMX: the processor has it and Linux permits it.
pub(super) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
            && has_tiles()
            && permitted()
    });
    *AVAILABLE
}

/// AMX-BF16 and AMX-TILE: Intel's Software Developer's Manual, CPUID.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    #[allow(unused_unsafe)] // a safe function in newer versions of Rust
    // SAFETY: whatever has AVX-512 has leaf 7.
    let edx = unsafe { __cpuid_count(7, 0) }.edx;
    edx & BF16 != 0 && edx & TILE != 0
}

/// Asks Linux for the tile registers: Documentation/arch/x86/xstate.rst.
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: two numbers; no memory changes.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// A right-hand side of products, packed.
#[derive(Default)]
pub(super) struct Panels {
    blocks: Vec<Block>,
    steps: usize, // blocks of a panel
}

impl Panels {
    /// Takes b (k, n). AMX must be available.
    pub fn load(&mut self, b: View, (k, n): (usize, usize)) {
        const TASK: usize = 8; // a microsecond or more
        assert!(available());
        self.steps = k.div_ceil(SIDE);
        self.blocks.resize(n.div_ceil(SIDE) * self.steps, Block::ZERO);
        self.blocks.par_chunks_mut(self.steps).with_min_len(TASK).enumerate().for_each(|(panel, blocks)| {
            SCRATCH.with_borrow_mut(|Scratch { lines, .. }| {
                // SAFETY: AMX is available, and with it what is enabled there.
                unsafe { pack(blocks, lines, Side::Right, b.t(), (n, k), panel..panel + 1, 0..self.steps) };
            });
        });
    }
}

/// See [`super::step::Sizes::matmul`]. AMX must be available.
pub(super) fn matmul((m, n, k): (usize, usize, usize), dst: &mut [f32], dst_row: usize, a: View, b: Right, add: bool) {
    assert!(available());
    SCRATCH.with_borrow_mut(|Scratch { left, right, lines, product }| {
        left.resize(LEFT_PANELS * STEPS, Block::ZERO);
        configure();
        for cols in parts(n, RIGHT_PANELS) {
            for steps in parts(k, STEPS) {
                let add = add || steps.start > 0;
                if b.panels.is_none() {
                    right.resize(RIGHT_PANELS * STEPS, Block::ZERO);
                    // SAFETY: AMX is available, and with it what is enabled there.
                    unsafe { pack(right, lines, Side::Right, b.view.t(), (n, k), cols.clone(), steps.clone()) };
                }
                let right = |col: usize| match b.panels {
                    None => &right[(col - cols.start) * steps.len()..][..steps.len()],
                    Some(b) => &b.blocks[col * b.steps..][steps.clone()],
                };
                for rows in parts(m, LEFT_PANELS) {
                    // SAFETY: AMX is available, and with it what is enabled there.
                    unsafe { pack(left, lines, Side::Left, a, (m, k), rows.clone(), steps.clone()) };
                    for (row, left) in rows.zip(left.chunks_exact(steps.len())) {
                        for col in cols.clone() {
                            let (first_row, first_col) = (row * SIDE, col * SIDE);
                            let dst = &mut dst[first_row * dst_row + first_col..];
                            let shape = (SIDE.min(m - first_row), SIDE.min(n - first_col));
                            multiply_into(dst, dst_row, shape, left, right(col), add, product);
                        }
                    }
                }
            }
        }
    });
}

/// Blocks of a dimension, so many at a time.
fn parts(len: usize, blocks: usize) -> impl Iterator<Item = Range<usize>> {
    let end = len.div_ceil(SIDE);
    (0..end).step_by(blocks).map(move |start| start..end.min(start + blocks))
}

/// Eight tiles of 16 rows of 64 bytes. Zeros them.
fn configure() {
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes: [[u16; 8]; 2],
        rows: [[u8; 8]; 2],
    }
    const TILES: Configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes: [[64; 8], [0; 8]], // there are no tiles beyond eight
        rows: [[16; 8], [0; 8]],
    };
    // SAFETY: 64 bytes are read. Nothing but `multiply` uses tiles.
    unsafe {
        asm!(
            "ldtilecfg [{}]",
            in(reg) &TILES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// dst (rows, cols), a part of a matrix, = the product of two panels, added to dst if `add`.
fn multiply_into(
    dst: &mut [f32],
    dst_row: usize,
    (rows, cols): (usize, usize),
    left: &[Block],
    right: &[Block],
    add: bool,
    product: &mut Square,
) {
    if (rows, cols) == (SIDE, SIDE) {
        assert!(dst.len() >= (SIDE - 1) * dst_row + SIDE);
        // SAFETY: dst is large enough.
        return unsafe { multiply(dst.as_mut_ptr(), dst_row, left, right, add) };
    }
    // SAFETY: product is large enough.
    unsafe { multiply(product.0.as_mut_ptr(), SIDE, left, right, false) };
    for (dst, product) in dst.chunks_mut(dst_row).zip(product.0.chunks_exact(SIDE)).take(rows) {
        let (dst, product) = (&mut dst[..cols], &product[..cols]);
        if add {
            dst.iter_mut().zip(product).for_each(|(dst, x)| *dst += x);
        } else {
            dst.copy_from_slice(product);
        }
    }
}

/// dst, 32 x 32 numbers, = the product of two panels, added to dst if `add`.
///
/// # Safety
/// dst has 32 rows of 32 numbers, tiles are configured.
unsafe fn multiply(dst: *mut f32, dst_row: usize, left: &[Block], right: &[Block], add: bool) {
    assert!(left.len() == right.len() && !left.is_empty());
    // Both tiles of a part of the numbers.
    #[rustfmt::skip]
    macro_rules! left {
        ($part:literal) => {
            concat!(
                "tileloadd tmm4, [{left} + {line} + 2048 * ", $part, "]\n",
                "tileloadd tmm5, [{left} + {line} + 2048 * ", $part, " + 1024]",
            )
        };
    }
    #[rustfmt::skip]
    macro_rules! right {
        ($part:literal) => {
            concat!(
                "tileloadd tmm6, [{right} + {line} + 2048 * ", $part, "]\n",
                "tileloadd tmm7, [{right} + {line} + 2048 * ", $part, " + 1024]",
            )
        };
    }
    macro_rules! product {
        () => {
            "tdpbf16ps tmm0, tmm4, tmm6
             tdpbf16ps tmm1, tmm4, tmm7
             tdpbf16ps tmm2, tmm5, tmm6
             tdpbf16ps tmm3, tmm5, tmm7"
        };
    }
    // SAFETY: ensured by the caller; the panels' blocks are read.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{dst} + {row}]",
            "tileloadd tmm1, [{dst} + {row} + 64]",
            "tileloadd tmm2, [{lower} + {row}]",
            "tileloadd tmm3, [{lower} + {row} + 64]",
            "3:",
            left!(0), right!(1), product!(), // x₁ y₂
            right!(0), product!(), // x₁ y₁
            left!(1), product!(), // x₂ y₁
            "add {left}, {block}",
            "add {right}, {block}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{dst} + {row}], tmm0",
            "tilestored [{dst} + {row} + 64], tmm1",
            "tilestored [{lower} + {row}], tmm2",
            "tilestored [{lower} + {row} + 64], tmm3",
            add = in(reg) u32::from(add),
            dst = in(reg) dst,
            lower = in(reg) dst.add(LANES * dst_row),
            row = in(reg) dst_row * size_of::<f32>(),
            line = in(reg) size_of::<[u32; LANES]>(),
            left = inout(reg) left.as_ptr() => _,
            right = inout(reg) right.as_ptr() => _,
            steps = inout(reg) left.len() => _,
            block = const size_of::<Block>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of matrices at odd places, compared with f64.
    fn check((m, n, k): (usize, usize, usize), packed: bool, a_t: bool, b_t: bool, add: bool) {
        let mut rng = fastrand::Rng::with_seed((m * n * k) as u64);
        let mut random =
            |n: usize| (0..n).map(|_| (rng.f32() - 0.5) * 10f32.powi(rng.i32(-3..3))).collect::<Vec<f32>>();
        const GAP: usize = 3;
        let view = |data, t, rows, cols| match t {
            false => View { data, row: cols + GAP, col: 1 },
            true => View { data, row: 1, col: rows + GAP },
        };
        let (a, b) = (random((m + GAP) * (k + GAP)), random((k + GAP) * (n + GAP)));
        let (a, b) = (view(&a, a_t, m, k), view(&b, b_t, k, n));
        let dst_row = n + GAP;
        let before = random(m * dst_row);
        let mut dst = before.clone();
        let mut panels = Panels::default();
        panels.load(b, (k, n));
        matmul((m, n, k), &mut dst, dst_row, a, Right { view: b, panels: packed.then_some(&panels) }, add);
        for (i, (dst, before)) in dst.chunks(dst_row).zip(before.chunks(dst_row)).enumerate() {
            assert_eq!(dst[n..], before[n..]);
            for j in 0..n {
                let terms =
                    (0..k).map(|l| f64::from(a.data[i * a.row + l * a.col]) * f64::from(b.data[l * b.row + j * b.col]));
                let start = if add { f64::from(before[j]) } else { 0.0 };
                let (sum, size) = terms.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
                let error = (f64::from(dst[j]) - sum).abs();
                assert!(error <= size / f64::from(1 << 15), "{m} {n} {k} at {i} {j}: {error} of {size}");
            }
        }
    }

    #[test]
    fn not_a_number_stays() {
        if !available() {
            return ::tests::shared::skip("this processor has no AMX");
        }
        for bits in [0x7fc0_0000, 0xffc0_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0x7f80_0000, 0xff80_0000] {
            let (x, one, mut dst) = ([f32::from_bits(bits)], [1.0], [0.0; 2]);
            let (x, one) = (View::new(&x, 1), View::new(&one, 1));
            for (dst, (a, b)) in dst.iter_mut().zip([(x, one), (one, x)]) {
                matmul((1, 1, 1), std::slice::from_mut(dst), 1, a, b.into(), false);
                assert!(dst.is_nan(), "{bits:x}: {dst}");
            }
        }
    }

    #[test]
    fn products_have_16_bits() {
        if !available() {
            return ::tests::shared::skip("this processor has no AMX");
        }
        // Edges of tiles, blocks, parts of a panel and parts of the panels.
        for shape in [(1, 1, 1), (5, 33, 2), (32, 32, 32), (70, 40, 100), (33, 64, 257), (290, 20, 31), (20, 550, 65)] {
            for choice in 0..16 {
                let [packed, a_t, b_t, add] = [1, 2, 4, 8].map(|bit| choice & bit != 0);
                check(shape, packed, a_t, b_t, add);
            }
        }
    }
}
