//! The f32 product with many tokens.

use super::{BLOCK, Lanes, Registers, Sums, rows_of_register, store, tiles};
use crate::math::LANES;
use crate::panel::Panel;
use crate::scratch::aligned;

/// Columns that are worked on in all lanes before the next ones are, so that x of a tile stays in
/// the first-level cache. A multiple of [`LANES`].
const CHUNK: usize = 512;

/// [`BatchF32`](crate::kernels::table::BatchF32) in tiles of `T` tokens, of which there are as many
/// at least.
///
/// # Safety
/// The machine has the instructions of `R`, and the caller is compiled for them.
#[inline(always)]
pub(crate) unsafe fn matmul_f32<R: Registers, const T: usize>(
    w: &[f32],
    cols: usize,
    x: &[f32],
    packed: &mut [f32],
    out: &mut Panel<'_>,
) {
    let n_tokens = x.len().checked_div(cols).unwrap_or(0);
    let Some(packed) = aligned(packed, cols.next_multiple_of(LANES) * BLOCK * R::ROWS) else { return };
    if n_tokens < T {
        return;
    }
    for (i, w) in w.chunks(BLOCK * R::ROWS * cols).enumerate() {
        // SAFETY: the caller vouches for the instructions. `packed` has room for a block, and from
        // each tile's first token on there are `T` rows of x.
        unsafe {
            pack::<R>(w, cols, packed);
            for first in tiles::<T>(n_tokens) {
                let sums = tile::<R, T>(packed, cols, x.as_ptr().add(first * cols));
                store::<R, T>(sums, out, first, i * BLOCK * R::ROWS);
            }
        }
    }
}

/// Packs rows as (LANES, cols / LANES rounded up, BLOCK, ROWS): the columns of a lane lie together.
///
/// # Safety
/// The machine has the instructions, and `packed` has room.
#[inline(always)]
unsafe fn pack<R: Registers>(w: &[f32], cols: usize, packed: &mut [f32]) {
    let per_lane = cols.div_ceil(LANES);
    let packed = packed.as_mut_ptr();
    for register in 0..BLOCK {
        let place = |column: usize| {
            packed.wrapping_add(((column % LANES * per_lane + column / LANES) * BLOCK + register) * R::ROWS)
        };
        let rows = rows_of_register::<R>(register, w.len() / cols);
        let offsets = rows.map(|row| row * cols * size_of::<f32>());
        let whole = cols / 4 * 4;
        for column in (0..whole).step_by(4) {
            // SAFETY: each of the rows has four columns from this one on, and `packed` has a place
            // for each.
            unsafe {
                let columns = R::transpose(w.as_ptr().add(column).cast(), &offsets);
                for (i, weights) in columns.into_iter().enumerate() {
                    R::store_i32(place(column + i), weights);
                }
            }
        }
        for column in whole..cols {
            for (r, row) in rows.into_iter().take(R::ROWS).enumerate() {
                // SAFETY: as above.
                unsafe { *place(column).add(r) = *w.as_ptr().add(row * cols + column) };
            }
        }
    }
}

/// Sums of `T` tokens with a packed block.
///
/// # Safety
/// The machine has the instructions, `packed` is of this many columns, and x has `T` rows of them.
#[inline(always)]
unsafe fn tile<R: Registers, const T: usize>(packed: &[f32], cols: usize, x: *const f32) -> Sums<R, T> {
    let per_lane = cols.div_ceil(LANES);
    let mut lanes = Lanes::<R, T>::new();
    // SAFETY: the caller vouches for what is read. All lanes are written in the first chunk.
    unsafe {
        for chunk in (0..cols).step_by(CHUNK) {
            let end = cols.min(chunk + CHUNK);
            for (l, lane) in lanes.0.iter_mut().enumerate() {
                let mut w = packed.as_ptr().add((l * per_lane + chunk / LANES) * BLOCK * R::ROWS);
                let mut sums = if chunk == 0 { [[R::splat(0.0); BLOCK]; T] } else { lane.assume_init_read() };
                for column in (chunk + l..end).step_by(LANES) {
                    let weights = [R::load(w), R::load(w.add(R::ROWS))];
                    w = w.add(BLOCK * R::ROWS);
                    for (t, sums) in sums.iter_mut().enumerate() {
                        let x = R::splat(*x.add(t * cols + column));
                        *sums = [R::add(sums[0], R::mul(weights[0], x)), R::add(sums[1], R::mul(weights[1], x))];
                    }
                }
                lane.write(sums);
            }
        }
        lanes.sum(LANES)
    }
}
