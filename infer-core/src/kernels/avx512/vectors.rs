//! What the AVX-512 kernels share.

use core::arch::x86_64::*;

use crate::math::{EXP2_G, ROUND, SMALLEST_SCORE};

/// [`math::exp2_score`](crate::math::exp2_score).
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
pub(super) fn exp2_score(x: __m512) -> __m512 {
    let c = |x| _mm512_set1_ps(x);
    let n = _mm512_sub_ps(_mm512_add_ps(x, c(ROUND)), c(ROUND));
    let f = _mm512_sub_ps(x, n);
    let [g0, g1, g2, g3, g4] = EXP2_G;
    let y = [g3, g2, g1, g0, 1.0].into_iter().fold(c(g4), |y, g| _mm512_add_ps(_mm512_mul_ps(y, f), c(g)));
    // Times 2^n, exact in this range. NaN compares false with everything, and stays.
    _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, c(SMALLEST_SCORE)), y, n)
}
