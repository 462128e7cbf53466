//! Sizes of the scratch of kernels for many tokens, which plans count and kernels cut.

use crate::config::WeightType;
use crate::math::LANES;

/// The most rows of weights that kernels pack at a time.
pub(crate) const MAX_BLOCK_ROWS: usize = 32;
/// Queries that share each load of keys and values.
pub(crate) const QUERY_TILE: usize = 6;
/// Numbers of a cache line.
const LINE: usize = 16;

/// The most numbers that a product of a matrix with this many columns takes.
pub(crate) const fn packed_len(cols: usize, weights: WeightType) -> usize {
    let columns = match weights {
        WeightType::F32 => cols.next_multiple_of(LANES),
        // 16 bits per weight at most, and two numbers per group.
        WeightType::Q8 { group_size: 0 } => 0,
        WeightType::Q8 { group_size } => cols.div_ceil(2) + 2 * cols.div_ceil(group_size),
    };
    columns.saturating_mul(MAX_BLOCK_ROWS).saturating_add(LINE)
}

/// `len` numbers of scratch that begin with a cache line.
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon")))]
#[inline(always)]
pub(crate) fn aligned(scratch: &mut [f32], len: usize) -> Option<&mut [f32]> {
    let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>());
    scratch.get_mut(skip..)?.get_mut(..len)
}

/// Numbers that attention of a tile of queries takes, the last of which attends to so many
/// positions.
pub(crate) const fn att_len(positions: usize) -> usize {
    positions.saturating_add(LINE - 1).saturating_mul(QUERY_TILE) // whole registers of 16
}
