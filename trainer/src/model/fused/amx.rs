//! Matrix products on Intel's AMX: numbers of 16 bits, where f32 has 24, and sums in f32.
//!
//! AMX multiplies bf16, 16 times as many in a clock cycle as AVX-512 multiplies f32. A number is split into two of them,
//! x = x₁ + x₂, and three products are taken: x₁y₁ + x₁y₂ + x₂y₁ (Henry, Tang and Heinecke 2019, arXiv:1904.06376). That is
//! what PyTorch calls high precision of f32 products. The parts are rounded, so that what is missing, x₂y₂ and the rest
//! of x and y, is at most 2⁻¹⁵ of xy, of either sign. Near the ends of f32's range it is more: AMX takes subnormal numbers,
//! parts among them, as zero, and infinity gives NaN.
//!
//! Operands are packed into blocks of 32 x 32 numbers. A panel is a row of blocks along the inner dimension.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::products::{Right, View};

/// Rows and columns of a block.
const SIDE: usize = 32;
/// Numbers of a vector, pairs of bf16 in a row of a tile, rows of a tile.
const LANES: usize = 16;
/// Blocks of a panel, and panels of each side, at a time: together they stay in the second-level cache.
const STEPS: usize = 8;
const LEFT_PANELS: usize = 8;
const RIGHT_PANELS: usize = 16;

/// Pairs of bf16 that are neighbours along the inner dimension, the first in the lower half. On the left-hand side a row
/// of the tile is one of the matrix, on the right-hand side a column of the tile is one of the matrix.
type Tile = [[u32; LANES]; LANES];

/// x₁ and x₂ of 32 x 32 numbers: of each the first and the last 16 rows (columns on the right-hand side).
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Block([[Tile; 2]; 2]);

impl Block {
    const ZERO: Block = Block([[[[0; LANES]; LANES]; 2]; 2]);
}

/// 32 x 32 numbers in f32.
#[repr(align(64))]
struct Square([f32; SIDE * SIDE]);

impl Square {
    const ZERO: Square = Square([0.0; SIDE * SIDE]);
}

/// Memory of a thread.
struct Scratch {
    left: Vec<Block>,
    right: Vec<Block>,
    lines: Lines,
    product: Square, // at the edges of a matrix
}

/// Numbers on their way into a block.
struct Lines {
    padded: Square,
    transposed: Square,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

impl Scratch {
    const fn new() -> Scratch {
        let lines = Lines { padded: Square::ZERO, transposed: Square::ZERO };
        Scratch { left: Vec::new(), right: Vec::new(), lines, product: Square::ZERO }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
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

/// See [`super::Sizes::matmul`]. AMX must be available.
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

/// Packs these steps of these panels of a matrix (outer, inner dimension), padded with zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(
    blocks: &mut [Block],
    lines: &mut Lines,
    side: Side,
    x: View,
    shape: (usize, usize),
    panels: Range<usize>,
    steps: Range<usize>,
) {
    let mut pack = |panel: usize, step: usize| {
        let block = &mut blocks[(panel - panels.start) * steps.len() + step - steps.start];
        pack_block(block, lines, side, x, shape, (panel * SIDE, step * SIDE));
    };
    // Along the lines of memory.
    if x.col == 1 {
        panels.clone().for_each(|panel| steps.clone().for_each(|step| pack(panel, step)));
    } else {
        steps.clone().for_each(|step| panels.clone().for_each(|panel| pack(panel, step)));
    }
}

/// Packs the block that begins with this row and column.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_block(
    block: &mut Block,
    Lines { padded, transposed }: &mut Lines,
    side: Side,
    x: View,
    (outer, inner): (usize, usize),
    (row, col): (usize, usize),
) {
    let (rows, cols) = (SIDE.min(outer - row), SIDE.min(inner - col));
    // Lines of contiguous numbers: rows, or columns.
    let (mut lines, mut line) = (&x.data[row * x.row + col * x.col..], x.row.max(x.col));
    let lines_are_rows = x.col == 1;
    for i in SIDE..2 * SIDE {
        // What comes next, but for the order of blocks. The processor foresees lines, not their beginnings.
        let next = lines.as_ptr().wrapping_add(i * line).cast();
        #[allow(unused_unsafe)] // safe functions in newer versions of Rust
        // SAFETY: a prefetch faults nowhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next);
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(64));
        }
    }
    if rows < SIDE || cols < SIDE {
        let (count, len) = if lines_are_rows { (rows, cols) } else { (cols, rows) };
        padded.0.fill(0.0);
        for (i, padded) in padded.0.chunks_exact_mut(SIDE).take(count).enumerate() {
            padded[..len].copy_from_slice(&lines[i * line..][..len]);
        }
        (lines, line) = (&padded.0, SIDE);
    }
    if lines_are_rows != matches!(side, Side::Left) {
        transpose(transposed, lines, line);
        (lines, line) = (&transposed.0, SIDE);
    }
    match side {
        Side::Left => pack_rows(block, lines, line),
        Side::Right => pack_columns(block, lines, line),
    }
}

/// A block of the left-hand side, of rows this far apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_rows(block: &mut Block, rows: &[f32], row: usize) {
    // The upper halves of two vectors' lanes, in order.
    let upper = indices(|i| 2 * i + 1);
    for i in 0..SIDE {
        let numbers = &rows[i * row..][..SIDE];
        let ((x, x_rest), (y, y_rest)) = (split(load(numbers)), split(load(&numbers[LANES..])));
        let [first, second] = &mut block.0;
        store(&mut first[i / LANES][i % LANES], _mm512_permutex2var_epi16(x, upper, y));
        store(&mut second[i / LANES][i % LANES], join(x_rest, y_rest));
    }
}

/// A block of the right-hand side, of rows this far apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_columns(block: &mut Block, rows: &[f32], row: usize) {
    // A number of the first vector, one of the second.
    let pairs = indices(|i| i / 2 + i % 2 * LANES);
    let upper = _mm512_set1_epi32(!0xffff);
    for i in 0..LANES {
        let (x, y) = (&rows[2 * i * row..][..SIDE], &rows[(2 * i + 1) * row..][..SIDE]);
        for half in 0..2 {
            let ((x, x_rest), (y, y_rest)) = (split(load(&x[half * LANES..])), split(load(&y[half * LANES..])));
            const FIRST_OR_BOTH_OTHERS: i32 = 0xf8;
            let [first, second] = &mut block.0;
            let x = _mm512_srli_epi32::<16>(x);
            store(&mut first[half][i], _mm512_ternarylogic_epi32::<FIRST_OR_BOTH_OTHERS>(x, y, upper));
            store(&mut second[half][i], _mm512_permutexvar_epi16(pairs, join(x_rest, y_rest)));
        }
    }
}

/// Where the 32 lanes of a permutation come from.
#[inline]
#[target_feature(enable = "avx512f")]
fn indices(from: impl Fn(usize) -> usize) -> __m512i {
    let indices: [u16; 2 * LANES] = std::array::from_fn(|i| from(i) as u16);
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(indices.as_ptr().cast()) }
}

/// x rounded to bf16, in the upper half of its lane (the lower half is to be ignored), and what is left of x. That is
/// a NaN if x is one or infinite.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(x: __m512) -> (__m512i, __m512) {
    // Adding half of the last place that stays rounds.
    let first = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(first, _mm512_set1_epi32(!0xffff))));
    (first, rest)
}

/// Both rounded to bf16, x first.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn join(x: __m512, y: __m512) -> __m512i {
    // SAFETY: 32 numbers of 16 bits, as they are.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(y, x)) }
}

/// The transpose of 32 x 32 numbers.
#[target_feature(enable = "avx512f")]
fn transpose(transposed: &mut Square, rows: &[f32], row: usize) {
    for i in (0..SIDE).step_by(LANES) {
        for j in (0..SIDE).step_by(LANES) {
            let mut x = [_mm512_setzero_ps(); LANES];
            for (l, x) in x.iter_mut().enumerate() {
                *x = load(&rows[(i + l) * row + j..]);
            }
            for (l, x) in transpose_lanes(x).into_iter().enumerate() {
                let line: &mut [f32; LANES] =
                    (&mut transposed.0[(j + l) * SIDE + i..][..LANES]).try_into().expect("16 numbers");
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_ps(line.as_mut_ptr(), x) };
            }
        }
    }
}

/// The transpose of 16 x 16 numbers: pairs, fours, then quarters of vectors change places.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_lanes(x: [__m512; LANES]) -> [__m512; LANES] {
    let pairs: [__m512d; LANES] = std::array::from_fn(|i| {
        let (a, b) = (x[i & !1], x[i | 1]);
        _mm512_castps_pd(if i % 2 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) })
    });
    let fours: [__m512; LANES] = std::array::from_fn(|i| {
        let (a, b) = (pairs[i & !3 | i >> 1 & 1], pairs[i & !3 | i >> 1 & 1 | 2]);
        _mm512_castpd_ps(if i % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
    });
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let halves: [__m512; LANES] = std::array::from_fn(|i| {
        let (a, b) = (fours[i & 11], fours[i & 11 | 4]);
        if i & 4 == 0 { _mm512_shuffle_f32x4::<EVEN>(a, b) } else { _mm512_shuffle_f32x4::<ODD>(a, b) }
    });
    std::array::from_fn(|i| {
        let (a, b) = (halves[i & 7], halves[i & 7 | 8]);
        if i & 8 == 0 { _mm512_shuffle_f32x4::<EVEN>(a, b) } else { _mm512_shuffle_f32x4::<ODD>(a, b) }
    })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32]) -> __m512 {
    let x: &[f32; LANES] = x[..LANES].try_into().expect("16 numbers");
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(row: &mut [u32; LANES], x: __m512i) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), x) };
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
            return println!("skipped: no AMX");
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
            return println!("skipped: no AMX");
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
