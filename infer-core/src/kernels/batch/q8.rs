//! The int8 product with many tokens.
//!
//! Weights and activations of a few columns stand in 32 bits, as an instruction multiplies them.
//! Where it takes activations as unsigned, these are too large by [`Int8::OFFSET`], and the sums of
//! a group begin at minus what that adds.

use super::{BLOCK, Lanes, Offsets, Registers, Sums, rows_of_register, store, tiles};
use crate::math::LANES;
use crate::matrix::Q8Matrix;
use crate::panel::Panel;
use crate::plan::XQ_BYTES;
use crate::scratch::aligned;

/// How instructions multiply small integers and add up the products.
///
/// # Safety
/// As for [`Registers`].
pub(crate) trait Int8 {
    /// The registers that it works on.
    type R: Registers;
    /// Columns that stand in 32 bits: 4 as bytes, 2 as integers of 16 bits.
    const COLUMNS: usize;
    /// What is added to activations, in 32 bits.
    const OFFSET: i32;

    /// `sums + Σ w·x` over the columns that stand in 32 bits, exact.
    unsafe fn dot(
        sums: <Self::R as Registers>::I32,
        w: <Self::R as Registers>::I32,
        x: <Self::R as Registers>::I32,
    ) -> <Self::R as Registers>::I32;
    /// `4 · COLUMNS` bytes of each row, transposed as by [`Registers::transpose`].
    unsafe fn transpose(from: *const u8, offsets: &Offsets) -> [<Self::R as Registers>::I32; 4];
}

/// The shape of a row, in times 32 bits.
#[derive(Clone, Copy)]
struct Shape {
    groups: usize,
    /// Of a group.
    columns: usize,
    /// Between rows of x.
    stride: usize,
}

/// [`BatchQ8`](crate::kernels::table::BatchQ8) in tiles of `T` tokens, of which there are as many
/// at least.
///
/// # Safety
/// The machine has the instructions of `I`, and the caller is compiled for them.
#[inline(always)]
pub(crate) unsafe fn matmul_q8<I: Int8, const T: usize>(
    w: &Q8Matrix<'_>,
    x: &[i8],
    xs: &[f32],
    packed: &mut [f32],
    out: &mut Panel<'_>,
) {
    let (cols, group_size) = (w.cols, w.group_size);
    let groups = cols.checked_div(group_size).unwrap_or(0);
    let n_tokens = xs.len().checked_div(groups).unwrap_or(0);
    let shape = Shape { groups, columns: group_size / I::COLUMNS, stride: XQ_BYTES * cols / 4 };
    let block = BLOCK * I::R::ROWS;
    let Some(packed) = aligned(packed, (groups * shape.columns + 2 * groups) * block) else { return };
    // Groups of whole columns, and enough of them for `pack`.
    let fits = group_size.is_multiple_of(I::COLUMNS) && groups * shape.columns >= 4;
    if n_tokens < T || !fits || x.len() < XQ_BYTES * cols * n_tokens {
        return;
    }
    for (i, (q, s)) in w.q.chunks(block * cols).zip(w.s.chunks(block * groups)).enumerate() {
        // SAFETY: the caller vouches for the instructions. `packed` has room for a block, and from
        // each tile's first token on there are `T` rows of x and of its scales.
        unsafe {
            pack::<I>(q, s, shape, packed);
            for first in tiles::<T>(n_tokens) {
                let x = x.as_ptr().add(first * XQ_BYTES * cols).cast();
                let sums = tile::<I, T>(packed, shape, x, xs.as_ptr().add(first * groups));
                store::<I::R, T>(sums, out, first, i * block);
            }
        }
    }
}

/// Packs rows as (columns, BLOCK, ROWS) of 32 bits each, then, (groups, 2, BLOCK, ROWS), the
/// integers that the sums of a group begin with, and its scales.
///
/// # Safety
/// The machine has the instructions, `packed` has room, and there are four columns at least.
#[inline(always)]
unsafe fn pack<I: Int8>(q: &[i8], s: &[f32], shape: Shape, packed: &mut [f32]) {
    let Shape { groups, columns: group, .. } = shape;
    let columns = groups * group;
    let packed = packed.as_mut_ptr();
    for register in 0..BLOCK {
        let place = |column: usize| packed.wrapping_add((column * BLOCK + register) * I::R::ROWS);
        let rows = rows_of_register::<I::R>(register, s.len() / groups);
        let offsets = rows.map(|row| row * columns * I::COLUMNS);
        // SAFETY: each of the rows has these columns and groups, and `packed` a place for each.
        unsafe {
            for column in (0..columns).step_by(4) {
                let column = column.min(columns - 4); // the last ones with some before them once more
                let from = q.as_ptr().add(column * I::COLUMNS).cast();
                for (i, weights) in I::transpose(from, &offsets).into_iter().enumerate() {
                    I::R::store_i32(place(column + i), weights);
                }
            }
            for g in 0..groups {
                let mut sums = I::R::splat_i32(0);
                if I::OFFSET != 0 {
                    for column in g * group..(g + 1) * group {
                        sums = I::dot(sums, I::R::load_i32(place(column)), I::R::splat_i32(I::OFFSET));
                    }
                }
                I::R::store_i32(place(columns + 2 * g), I::R::negate(sums));
                for (r, row) in rows.into_iter().take(I::R::ROWS).enumerate() {
                    *place(columns + 2 * g + 1).add(r) = *s.as_ptr().add(row * groups + g);
                }
            }
        }
    }
}

/// Sums of `T` tokens with a packed block.
///
/// # Safety
/// The machine has the instructions, `packed` is of this shape, and so are `T` rows of x and xs.
#[inline(always)]
unsafe fn tile<I: Int8, const T: usize>(packed: &[f32], shape: Shape, x: *const i32, xs: *const f32) -> Sums<I::R, T> {
    let Shape { groups, columns, stride } = shape;
    let rows = I::R::ROWS;
    let mut lanes = Lanes::<I::R, T>::new();
    // SAFETY: the caller vouches for what is read. The first groups write their lanes.
    unsafe {
        for g in 0..groups {
            let mut w = packed.as_ptr().add(g * columns * BLOCK * rows);
            let group = packed.as_ptr().add((groups * columns + 2 * g) * BLOCK * rows);
            let mut sums = [[I::R::load_i32(group), I::R::load_i32(group.add(rows))]; T];
            for column in g * columns..(g + 1) * columns {
                let weights = [I::R::load_i32(w), I::R::load_i32(w.add(rows))];
                w = w.add(BLOCK * rows);
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = I::R::splat_i32(*x.add(t * stride + column));
                    *sums = [I::dot(sums[0], weights[0], x), I::dot(sums[1], weights[1], x)];
                }
            }
            let ws = [I::R::load(group.add(2 * rows)), I::R::load(group.add(3 * rows))];
            let lane = lanes.0[g % LANES].as_mut_ptr().cast::<[<I::R as Registers>::F32; BLOCK]>();
            for (t, sums) in sums.into_iter().enumerate() {
                let xs = I::R::splat(*xs.add(t * groups + g));
                let mut contribution = [xs; BLOCK];
                for r in 0..BLOCK {
                    contribution[r] = I::R::mul(I::R::mul(I::R::to_f32(sums[r]), ws[r]), xs);
                    if g >= LANES {
                        contribution[r] = I::R::add((*lane.add(t))[r], contribution[r]);
                    }
                }
                lane.add(t).write(contribution);
            }
        }
        lanes.sum(groups)
    }
}
