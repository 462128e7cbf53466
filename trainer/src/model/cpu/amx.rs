//! Matrix products on Intel's AMX: numbers of 16 bits, where f32 has 24, and sums in f32.
//!
//! AMX multiplies numbers in bf16, 16 times as many per clock cycle as AVX-512 multiplies in f32.
//! Each f32 is split into two of them, x = x₁ + x₂, and three products are added: x₁y₁ + x₁y₂ +
//! x₂y₁ (Henry, Tang and Heinecke 2019, arXiv:1904.06376). PyTorch calls this the high precision of
//! f32 products. The parts are rounded, and x₂y₂ is left out: together the error is at most 2⁻¹⁵ of
//! xy, of either sign. With [`Terms::One`] it is x₁y₁ alone, the product of numbers in bf16. The
//! error is larger near the ends of f32's range: AMX takes subnormal numbers, parts among them, as
//! zero, and infinity gives NaN.
//!
//! Operands are packed into blocks of 32 x 32 numbers. A panel is a row of blocks along the inner
//! dimension.

#![allow(unsafe_code)]

mod pack;
mod vector;

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::mat::{Mat, MatMut};
use pack::{Block, LANES, Lines, SIDE, Side, Square, pack};

/// The number of blocks of a panel, and of panels of each side, that are multiplied at a time.
/// Together they fit in the second-level cache.
const STEPS: usize = 8;
const LEFT_PANELS: usize = 8;
const RIGHT_PANELS: usize = 16;

/// The memory of a thread.
struct Scratch {
    left: Vec<Block>,
    right: Vec<Block>,
    lines: Lines,
    product: Square, // of two panels at the edge of a matrix
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

impl Scratch {
    const fn new() -> Scratch {
        Scratch { left: Vec::new(), right: Vec::new(), lines: Lines::ZERO, product: Square::ZERO }
    }
}

/// Returns whether products can use AMX: the processor has it and Linux permits it.
pub(super) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| has_bfloat16() && has_tiles() && permitted());
    *AVAILABLE
}

/// Returns whether there are products of numbers in bf16, [`Terms::One`]: on AMX or else AVX-512.
pub(super) fn has_bfloat16() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Asks the processor for AMX-BF16 and AMX-TILE (Intel's Software Developer's Manual, CPUID).
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    #[allow(unused_unsafe)] // a safe function in newer versions of Rust
    // SAFETY: the processor must have CPUID leaf 7. AVX-512 is announced there, and the caller,
    // `available`, found it before.
    let edx = unsafe { __cpuid_count(7, 0) }.edx;
    edx & BF16 != 0 && edx & TILE != 0
}

/// Asks Linux for the tile registers (Documentation/arch/x86/xstate.rst).
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this system call takes two numbers, reads and writes no memory of the process, and
    // only permits instructions.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// A right-hand side of products, packed.
#[derive(Default)]
pub(super) struct Panels {
    blocks: Vec<Block>,
    shape: (usize, usize),
    steps: usize, // blocks of a panel
}

/// The products of parts that are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terms {
    /// x₁y₁ + x₁y₂ + x₂y₁: 16 bits
    Three,
    /// x₁y₁: 8 bits
    One,
}

/// The right-hand side of a product.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    Plain(Mat<'a>),
    Packed(&'a Panels),
}

impl Panels {
    /// Packs b (k, n). The processor must have products of bf16.
    pub fn load(&mut self, b: Mat) {
        const TASK: usize = 8; // panels: a microsecond or more
        assert!(has_bfloat16());
        self.shape = b.shape();
        let (k, n) = self.shape;
        self.steps = k.div_ceil(SIDE);
        self.blocks.resize(n.div_ceil(SIDE) * self.steps, Block::ZERO);
        self.blocks.par_chunks_mut(self.steps).with_min_len(TASK).enumerate().for_each(|(panel, blocks)| {
            let cols = panel * SIDE..n.min((panel + 1) * SIDE);
            SCRATCH.with_borrow_mut(|Scratch { lines, .. }| {
                // SAFETY: `pack` needs AVX-512 with BW and BF16: `has_bfloat16` found them.
                unsafe { pack(blocks, lines, Side::Right, b.t().rows(cols)) };
            });
        });
    }
}

/// out = a · b, or out += a · b if `add`. AMX must be available, or for one term products of bf16,
/// and the shapes must match.
pub(super) fn multiply(mut out: MatMut, a: Mat, b: Right, add: bool, terms: Terms) {
    let panels: Panel = match terms {
        Terms::One if !available() => vector::multiply_first_parts,
        Terms::One => multiply_first_parts,
        Terms::Three => multiply_panels,
    };
    assert!(has_bfloat16() && (terms == Terms::One || available()));
    let ((m, n), (_, k)) = (out.shape(), a.shape());
    let b_shape = match b {
        Right::Plain(b) => b.shape(),
        Right::Packed(b) => b.shape,
    };
    assert!(a.shape() == (m, k) && b_shape == (k, n));
    SCRATCH.with_borrow_mut(|Scratch { left, right, lines, product }| {
        left.resize(LEFT_PANELS * STEPS, Block::ZERO);
        if available() {
            configure();
        }
        for cols in parts(n, RIGHT_PANELS) {
            for steps in parts(k, STEPS) {
                let add = add || steps.start > 0;
                let (first, len) = (steps.start / SIDE, steps.len().div_ceil(SIDE));
                if let Right::Plain(b) = b {
                    right.resize(RIGHT_PANELS * STEPS, Block::ZERO);
                    // SAFETY: `pack` needs AVX-512 with BW and BF16, and `has_bfloat16` above
                    // found them.
                    unsafe { pack(right, lines, Side::Right, b.block(steps.clone(), cols.clone()).t()) };
                }
                let right = |col: usize| match b {
                    Right::Plain(_) => &right[(col - cols.start) / SIDE * len..][..len],
                    Right::Packed(b) => &b.blocks[col / SIDE * b.steps + first..][..len],
                };
                for rows in parts(m, LEFT_PANELS) {
                    // SAFETY: as above.
                    unsafe { pack(left, lines, Side::Left, a.block(rows.clone(), steps.clone())) };
                    for (row, left) in rows.clone().step_by(SIDE).zip(left.chunks_exact(len)) {
                        for col in cols.clone().step_by(SIDE) {
                            let out = out.block(row..m.min(row + SIDE), col..n.min(col + SIDE));
                            multiply_into(panels, out, left, right(col), add, product);
                        }
                    }
                }
            }
        }
    });
}

/// Cuts a dimension into parts of at most so many blocks.
fn parts(len: usize, blocks: usize) -> impl Iterator<Item = Range<usize>> {
    let most = blocks * SIDE;
    (0..len).step_by(most).map(move |start| start..len.min(start + most))
}

/// Configures eight tiles of 16 rows of 64 bytes, and zeros them.
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
    // SAFETY: AMX must be permitted, which `multiply` asks before it calls this. The instruction
    // reads the 64 bytes of TILES and overwrites the tiles, which nothing else uses.
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

/// out, at most 32 x 32 numbers, = the product of two panels by a function whose needs are met,
/// added to it if `add`.
fn multiply_into(
    multiply_panels: Panel,
    mut out: MatMut,
    left: &[Block],
    right: &[Block],
    add: bool,
    product: &mut Square,
) {
    let ((rows, cols), stride) = (out.shape(), out.stride());
    if (rows, cols) == (SIDE, SIDE) {
        let out = out.data();
        assert!(out.len() >= (SIDE - 1) * stride + SIDE);
        // SAFETY: `out` must hold 32 rows of 32 numbers, `stride` apart: just asserted. The caller
        // knows that the processor has what the function needs.
        return unsafe { multiply_panels(out.as_mut_ptr(), stride, left, right, add) };
    }
    // SAFETY: `product` must hold 32 rows of 32 numbers, 32 apart: a square does. The caller
    // knows that the processor has what the function needs.
    unsafe { multiply_panels(product.0.as_mut_ptr(), SIDE, left, right, false) };
    for (out, product) in out.data().chunks_mut(stride).zip(product.0.chunks_exact(SIDE)).take(rows) {
        let (out, product) = (&mut out[..cols], &product[..cols]);
        if add {
            out.iter_mut().zip(product).for_each(|(out, x)| *out += x);
        } else {
            out.copy_from_slice(product);
        }
    }
}

/// Loads both tiles of the left-hand side: x₁ (part 0) or x₂ (part 1).
#[rustfmt::skip]
macro_rules! left {
    ($part:literal) => {
        concat!(
            "tileloadd tmm4, [{left} + {line} + 2048 * ", $part, "]\n",
            "tileloadd tmm5, [{left} + {line} + 2048 * ", $part, " + 1024]",
        )
    };
}

/// Loads both tiles of the right-hand side: y₁ (part 0) or y₂ (part 1).
#[rustfmt::skip]
macro_rules! right {
    ($part:literal) => {
        concat!(
            "tileloadd tmm6, [{right} + {line} + 2048 * ", $part, "]\n",
            "tileloadd tmm7, [{right} + {line} + 2048 * ", $part, " + 1024]",
        )
    };
}

/// Adds the products of the loaded tiles to the four sums.
macro_rules! product {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7"
    };
}

/// A function that multiplies panels: out, its stride, left, right, whether to add.
type Panel = unsafe fn(*mut f32, usize, &[Block], &[Block], bool);

/// Defines a [`Panel`] of these terms for each block.
macro_rules! panel {
    ($name:ident, $($terms:expr),*) => {
/// out, 32 x 32 numbers, = the product of two panels, added to it if `add`.
///
/// # Safety
/// `out` points to 32 rows of 32 numbers, `stride` apart, that may be written to. The tiles are
/// configured.
unsafe fn $name(out: *mut f32, stride: usize, left: &[Block], right: &[Block], add: bool) {
    assert!(left.len() == right.len() && !left.is_empty());
    // SAFETY: `out` is as the caller promises. Each of the `left.len()` rounds reads a block of
    // `left` and one of `right`, which have the same number of blocks, at least 1.
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
            "tileloadd tmm0, [{out} + {row}]",
            "tileloadd tmm1, [{out} + {row} + 64]",
            "tileloadd tmm2, [{lower} + {row}]",
            "tileloadd tmm3, [{lower} + {row} + 64]",
            "3:",
            $($terms,)*
            "add {left}, {block}",
            "add {right}, {block}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{out} + {row}], tmm0",
            "tilestored [{out} + {row} + 64], tmm1",
            "tilestored [{lower} + {row}], tmm2",
            "tilestored [{lower} + {row} + 64], tmm3",
            add = in(reg) u32::from(add),
            out = in(reg) out,
            lower = in(reg) out.add(LANES * stride),
            row = in(reg) stride * size_of::<f32>(),
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
    };
}

panel!(
    multiply_panels,
    concat!(left!(0), "\n", right!(1), "\n", product!()), // x₁ y₂
    concat!(right!(0), "\n", product!()),                 // x₁ y₁
    concat!(left!(1), "\n", product!())                   // x₂ y₁
);
panel!(multiply_first_parts, concat!(left!(0), "\n", right!(0), "\n", product!()));

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of matrices at odd places, compared with f64.
    fn check((m, n, k): (usize, usize, usize), [packed, a_t, b_t, add]: [bool; 4], terms: Terms) {
        let mut rng = fastrand::Rng::with_seed((m * n * k) as u64);
        let mut random =
            |n: usize| (0..n).map(|_| (rng.f32() - 0.5) * 10f32.powi(rng.i32(-3..3))).collect::<Vec<f32>>();
        const GAP: usize = 3;
        let view = |data, t, rows, cols| match t {
            false => Mat::new(data, cols + GAP).block(0..rows, 0..cols),
            true => Mat::new(data, rows + GAP).block(0..cols, 0..rows).t(),
        };
        let (a, b) = (random((m + GAP) * (k + GAP)), random((k + GAP) * (n + GAP)));
        let (a, b) = (view(&a, a_t, m, k), view(&b, b_t, k, n));
        let at = |x: Mat, i, j| f64::from(x.data()[i * x.strides().0 + j * x.strides().1]);
        let stride = n + GAP;
        let before = random(m * stride);
        let mut out = before.clone();
        let mut panels = Panels::default();
        panels.load(b);
        let bits = if terms == Terms::Three { 15 } else { 7 };
        let right = if packed { Right::Packed(&panels) } else { Right::Plain(b) };
        multiply(MatMut::new(&mut out, stride).block(0..m, 0..n), a, right, add, terms);
        for (i, (out, before)) in out.chunks(stride).zip(before.chunks(stride)).enumerate() {
            assert_eq!(out[n..], before[n..]);
            for j in 0..n {
                let terms = (0..k).map(|l| at(a, i, l) * at(b, l, j));
                let start = if add { f64::from(before[j]) } else { 0.0 };
                let (sum, size) = terms.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
                let error = (f64::from(out[j]) - sum).abs();
                assert!(error <= size / f64::from(1 << bits), "{m} {n} {k} at {i} {j}: {error} of {size}");
            }
        }
    }

    #[test]
    fn vectors_multiply_what_tiles_multiply() {
        if !available() {
            return ::tests::shared::skip("this processor has no AMX");
        }
        let mut rng = fastrand::Rng::with_seed(5);
        let mut panel = |side| {
            let numbers: Vec<f32> = (0..32 * 96).map(|_| rng.f32() - 0.5).collect();
            let (mut blocks, mut lines) = (vec![Block::ZERO; 3], Lines::ZERO);
            // SAFETY: AVX-512 with BW and BF16 is part of what is available.
            unsafe { pack(&mut blocks, &mut lines, side, Mat::new(&numbers, 96)) };
            blocks
        };
        let (left, right) = (panel(Side::Left), panel(Side::Right));
        for add in [false, true] {
            let [tiles, vectors] = [multiply_first_parts as Panel, vector::multiply_first_parts].map(|multiply| {
                let mut out = vec![0.25; 31 * 40 + 32];
                configure();
                // SAFETY: 32 rows of 32 numbers, 40 apart; the processor has what both need.
                unsafe { multiply(out.as_mut_ptr(), 40, &left, &right, add) };
                out
            });
            assert!(tiles.iter().zip(&vectors).all(|(a, b)| (a - b).abs() < 1e-5), "{tiles:?} {vectors:?}");
            assert!(vectors[0] != 0.25 && vectors[32..40] == [0.25; 8]);
        }
    }

    #[test]
    fn not_a_number_stays() {
        if !available() {
            return ::tests::shared::skip("this processor has no AMX");
        }
        for bits in [0x7fc0_0000, 0xffc0_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0x7f80_0000, 0xff80_0000] {
            let (x, one, mut out) = ([f32::from_bits(bits)], [1.0], [0.0; 2]);
            let (x, one) = (Mat::new(&x, 1), Mat::new(&one, 1));
            for (out, (a, b)) in out.iter_mut().zip([(x, one), (one, x)]) {
                multiply(MatMut::new(std::slice::from_mut(out), 1), a, Right::Plain(b), false, Terms::Three);
                assert!(out.is_nan(), "{bits:x}: {out}");
            }
        }
    }

    #[test]
    fn products_have_their_bits() {
        if !available() {
            return ::tests::shared::skip("this processor has no AMX");
        }
        // Edges of tiles, blocks, parts of a panel and parts of the panels.
        for shape in [(1, 1, 1), (5, 33, 2), (32, 32, 32), (70, 40, 100), (33, 64, 257), (290, 20, 31), (20, 550, 65)] {
            for choice in 0..16 {
                let choices = [1, 2, 4, 8].map(|bit| choice & bit != 0);
                for terms in [Terms::Three, Terms::One] {
                    check(shape, choices, terms);
                }
            }
        }
    }
}
