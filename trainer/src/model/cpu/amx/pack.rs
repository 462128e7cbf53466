//! Packs matrices for AMX and AVX-512: from lines of f32 to blocks of pairs of bf16.

use std::arch::x86_64::*;

use crate::model::cpu::mat::Mat;

/// The number of rows, and of columns, of a block.
pub const SIDE: usize = 32;
/// The number of f32 in a vector, of pairs of bf16 in a row of a tile, and of rows of a tile.
pub const LANES: usize = 16;
/// A tile of pairs of bf16. A pair are neighbours along the inner dimension, the first in the lower
/// half. A row of a left-hand tile is a row of the matrix; a column of a right-hand tile is a
/// column of the matrix.
pub type Tile = [[u32; LANES]; LANES];

/// 32 x 32 numbers, split: x₁, then x₂, each in two tiles. The first tile holds the first 16 rows
/// (columns on the right-hand side).
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Block([[Tile; 2]; 2]);

impl Block {
    pub const ZERO: Block = Block([[[[0; LANES]; LANES]; 2]; 2]);

    /// The tiles of x₁.
    pub fn first(&self) -> &[Tile; 2] {
        &self.0[0]
    }
}

/// 32 x 32 numbers in f32.
#[repr(align(64))]
pub struct Square(pub [f32; SIDE * SIDE]);

impl Square {
    pub const ZERO: Square = Square([0.0; SIDE * SIDE]);
}

/// The numbers of a block before they are split.
pub struct Lines {
    padded: Square,
    transposed: Square,
}

impl Lines {
    pub const ZERO: Lines = Lines { padded: Square::ZERO, transposed: Square::ZERO };
}

#[derive(Clone, Copy)]
pub enum Side {
    Left,
    Right,
}

/// Packs a matrix (outer, inner dimension), panel by panel, padded with zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn pack(blocks: &mut [Block], lines: &mut Lines, side: Side, x: Mat) {
    let (outer, inner) = x.shape();
    let (panels, steps) = (outer.div_ceil(SIDE), inner.div_ceil(SIDE));
    let mut pack = |panel: usize, step: usize| {
        let (row, col) = (panel * SIDE, step * SIDE);
        let x = x.block(row..outer.min(row + SIDE), col..inner.min(col + SIDE));
        pack_block(&mut blocks[panel * steps + step], lines, side, x);
    };
    // Along the lines of memory.
    if x.strides().1 == 1 {
        (0..panels).for_each(|panel| (0..steps).for_each(|step| pack(panel, step)));
    } else {
        (0..steps).for_each(|step| (0..panels).for_each(|panel| pack(panel, step)));
    }
}

/// Packs at most 32 x 32 numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_block(block: &mut Block, Lines { padded, transposed }: &mut Lines, side: Side, x: Mat) {
    let ((rows, cols), (row, col)) = (x.shape(), x.strides());
    // A line is a row or a column, whichever is contiguous.
    let (mut lines, mut line) = (x.data(), row.max(col));
    let lines_are_rows = col == 1;
    for i in SIDE..2 * SIDE {
        // Prefetches the next block. The hardware prefetcher follows a line but does not find its
        // start.
        let next = lines.as_ptr().wrapping_add(i * line).cast();
        #[allow(unused_unsafe)] // safe functions in newer versions of Rust
        // SAFETY: a prefetch may have any address: it does not fault and changes no memory.
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

/// Packs rows, `row` apart, into a block of the left-hand side.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_rows(block: &mut Block, rows: &[f32], row: usize) {
    // Picks the upper halves of the lanes of two vectors, in order.
    let upper = indices(|i| 2 * i + 1);
    for i in 0..SIDE {
        let numbers = &rows[i * row..][..SIDE];
        let ((x, x_rest), (y, y_rest)) = (split(load(numbers)), split(load(&numbers[LANES..])));
        let [first, second] = &mut block.0;
        store(&mut first[i / LANES][i % LANES], _mm512_permutex2var_epi16(x, upper, y));
        store(&mut second[i / LANES][i % LANES], join(x_rest, y_rest));
    }
}

/// Packs rows, `row` apart, into a block of the right-hand side.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_columns(block: &mut Block, rows: &[f32], row: usize) {
    // Picks a number of the first vector, then one of the second.
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

/// The lanes that a permutation of 32 takes: `from(i)` goes to lane i.
#[inline]
#[target_feature(enable = "avx512f")]
fn indices(from: impl Fn(usize) -> usize) -> __m512i {
    let indices: [u16; 2 * LANES] = std::array::from_fn(|i| from(i) as u16);
    // SAFETY: the load reads 64 bytes, and `indices` has 32 of 2 bytes.
    unsafe { _mm512_loadu_si512(indices.as_ptr().cast()) }
}

/// Rounds x to bf16, in the upper half of its lane; the lower half means nothing. Returns also the
/// rest of x, which is NaN if x is NaN or infinite.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(x: __m512) -> (__m512i, __m512) {
    // Adding half of the last place that is kept rounds.
    let first = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(first, _mm512_set1_epi32(!0xffff))));
    (first, rest)
}

/// Rounds both to bf16, x first.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn join(x: __m512, y: __m512) -> __m512i {
    // SAFETY: both types are 64 bytes, and every bit pattern is a valid __m512i.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(y, x)) }
}

/// Transposes 32 x 32 numbers, in rows `row` apart.
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
                // SAFETY: the store writes 64 bytes, and `line` has 16 numbers of 4 bytes.
                unsafe { _mm512_storeu_ps(line.as_mut_ptr(), x) };
            }
        }
    }
}

/// Transposes 16 x 16 numbers: pairs, fours, then quarters of vectors change places.
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
    // SAFETY: the load reads 64 bytes, and `x` has 16 numbers of 4 bytes.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(row: &mut [u32; LANES], x: __m512i) {
    // SAFETY: the store writes 64 bytes, and `row` has 16 numbers of 4 bytes.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), x) };
}
