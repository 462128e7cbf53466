//! Products of bf16 on AVX-512, for processors that have no AMX.

use std::arch::x86_64::*;

use super::pack::{Block, LANES, SIDE};

/// Rows whose sums are in registers together.
const ROWS: usize = 8;

/// out, 32 x 32 numbers, = the product of the first parts of two panels, added to it if `add`.
///
/// # Safety
/// The processor has AVX-512 with BF16. `out` points to 32 rows of 32 numbers, `stride` apart, that
/// may be written to.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn multiply_first_parts(out: *mut f32, stride: usize, left: &[Block], right: &[Block], add: bool) {
    for first in (0..SIDE).step_by(ROWS) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        // SAFETY: `out` is as the caller promises, and these rows and columns are below 32.
        let at = |row: usize, half: usize| unsafe { out.add((first + row) * stride + half * LANES) };
        if add {
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above, 16 numbers.
                *sums = [0, 1].map(|half| unsafe { _mm512_loadu_ps(at(row, half)) });
            }
        }
        for (left, right) in left.iter().zip(right) {
            let ([upper, lower], [columns, others]) = (left.first(), right.first());
            let rows = &if first < LANES { upper } else { lower }[first % LANES..][..ROWS];
            for pair in 0..LANES {
                let (columns, others) = (load(&columns[pair]), load(&others[pair]));
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let x = to_bf16(_mm512_set1_epi32(row[pair] as i32));
                    *sums = [_mm512_dpbf16_ps(sums[0], x, columns), _mm512_dpbf16_ps(sums[1], x, others)];
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                _mm512_storeu_ps(at(row, 0), sums[0]);
                _mm512_storeu_ps(at(row, 1), sums[1]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(pairs: &[u32; LANES]) -> __m512bh {
    // SAFETY: 64 bytes are there.
    to_bf16(unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) })
}

fn to_bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which any are values.
    unsafe { std::mem::transmute(pairs) }
}
