//! Causal attention of one head, forward and backward, without a matrix of attention weights.
//!
//! q, k, v and their gradients are transposed, `(head_size, padded)`: positions are contiguous, so
//! that every load of a vector is one of neighbouring positions, whatever the head size. Scores are
//! in units of log2 (q comes scaled by log2(e) / √head_size). Forward keeps the running maximum and
//! sum of FlashAttention (Dao et al. 2022, arXiv:2205.14135), lanes are queries; what backward
//! needs is one number per query, the log2 of the sum. Backward recomputes the weights, lanes are
//! keys, and the gradient of q is summed over lanes at the end.
//!
//! Rows are padded with zeros to `padded` positions, a multiple of 16: keys there are masked, as
//! they come after every query, and queries there have gradients of zero.

// Index loops: iterators of vectors are not inlined into code that is compiled for another
// instruction set.
#![allow(clippy::needless_range_loop)]

use pulp::bytemuck;
use pulp::{Simd, WithSimd};

use super::math::exp2s;
use crate::model::dropout::Dropout;

/// Keys at a time in forward. Sixteen spill even 32 registers.
const KEYS: usize = 8;

/// Vectors of keys at a time in backward: their weights stay in the first-level cache.
const BLOCKS: usize = 8;

/// Vectors in whole cache lines; of their own they are aligned to a number only.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Aligned<T>(T);

/// Dropout of a head's attention weights: (query, key) is (row + query, key) of the whole matrix.
#[derive(Clone, Copy)]
pub(super) struct HeadDropout {
    pub dropout: Dropout,
    pub row: usize,
}

/// o = softmax(q·k) v of one head.
pub(super) struct Forward<'a> {
    pub q: &'a [f32],       // (head_size, padded)
    pub k: &'a [f32],       // (head_size, padded)
    pub v: &'a [f32],       // (head_size, padded)
    pub o: &'a mut [f32],   // (head_size, padded)
    pub lse: &'a mut [f32], // (padded)
    pub padded: usize,
    pub dropout: Option<HeadDropout>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Forward { q, k, v, o, lse, padded, dropout } = self;
        let (lanes, head_size, vectors) = (S::F32_LANES, q.len() / padded, padded / S::F32_LANES);
        let (qs, os) = (S::as_simd_f32s(q).0, S::as_mut_simd_f32s(o).0);
        let zero = simd.splat_f32s(0.0);
        let masked = simd.splat_f32s(-1e30);
        let mut local = vec![Aligned([zero; 2]); head_size]; // q and o of these queries
        for block in 0..vectors {
            let t = block * lanes;
            for d in 0..head_size {
                local[d] = Aligned([qs[d * vectors + block], zero]);
            }
            let mut max = masked;
            let mut sum = zero;
            let positions = iota(simd, t);
            let rows = match dropout {
                Some(d) => row_keys(simd, d, t),
                None => positions,
            };
            for j in (0..t + lanes).step_by(KEYS) {
                let mut s = [zero; KEYS];
                for (d, Aligned([q, _])) in local.iter().enumerate() {
                    let k = part::<KEYS>(k, d * padded + j);
                    for i in 0..KEYS {
                        s[i] = simd.mul_add_e_f32s(*q, simd.splat_f32s(k[i]), s[i]);
                    }
                }
                let diagonal = j + KEYS > t + 1;
                if diagonal {
                    for i in 0..KEYS {
                        let seen = simd.less_than_or_equal_u32s(simd.splat_u32s((j + i) as u32), positions);
                        s[i] = simd.select_f32s(seen, s[i], masked);
                    }
                }
                let block_max = simd.max_f32s(
                    max,
                    tree(
                        s,
                        #[inline(always)]
                        |a, b| simd.max_f32s(a, b),
                    ),
                );
                let correction = exp2s(simd, simd.sub_f32s(max, block_max));
                max = block_max;
                for i in 0..KEYS {
                    s[i] = exp2s(simd, simd.sub_f32s(s[i], max));
                }
                if diagonal {
                    for i in 0..KEYS {
                        let seen = simd.less_than_or_equal_u32s(simd.splat_u32s((j + i) as u32), positions);
                        s[i] = simd.select_f32s(seen, s[i], zero);
                    }
                }
                sum = simd.mul_add_e_f32s(
                    sum,
                    correction,
                    tree(
                        s,
                        #[inline(always)]
                        |a, b| simd.add_f32s(a, b),
                    ),
                );
                if let Some(d) = dropout {
                    for i in 0..KEYS {
                        let col = simd.splat_u32s(Dropout::col(j + i));
                        s[i] = simd.mul_f32s(s[i], factors(simd, &d.dropout, rows, col));
                    }
                }
                for (d, Aligned([_, o])) in local.iter_mut().enumerate() {
                    let v = part::<KEYS>(v, d * padded + j);
                    // Two sums: half the latency.
                    let (mut even, mut odd) = (simd.mul_f32s(*o, correction), zero);
                    for i in (0..KEYS).step_by(2) {
                        even = simd.mul_add_e_f32s(s[i], simd.splat_f32s(v[i]), even);
                        odd = simd.mul_add_e_f32s(s[i + 1], simd.splat_f32s(v[i + 1]), odd);
                    }
                    *o = simd.add_f32s(even, odd);
                }
            }
            let inverse = simd.div_f32s(simd.splat_f32s(1.0), sum);
            for (d, Aligned([_, o])) in local.iter().enumerate() {
                os[d * vectors + block] = simd.mul_f32s(*o, inverse);
            }
            let lse = &mut lse[t..t + lanes];
            S::as_mut_simd_f32s(lse).0[0] = sum;
            for x in &mut *lse {
                *x = x.log2();
            }
            let lse = &mut S::as_mut_simd_f32s(lse).0[0];
            *lse = simd.add_f32s(max, *lse);
        }
    }
}

/// Gradients of [`Forward`]: dq is written, dk and dv are added to. As scores are in log2, dq and
/// dk are to be multiplied by ln(2).
pub(super) struct Backward<'a> {
    pub q: &'a [f32],      // (head_size, padded)
    pub k: &'a [f32],      // (head_size, padded)
    pub v: &'a [f32],      // (head_size, padded)
    pub o: &'a [f32],      // (head_size, padded)
    pub d_o: &'a [f32],    // (head_size, padded)
    pub lse: &'a [f32],    // (padded)
    pub dq: &'a mut [f32], // (head_size, padded)
    pub dk: &'a mut [f32], // (head_size, padded)
    pub dv: &'a mut [f32], // (head_size, padded)
    pub padded: usize,
    pub dropout: Option<HeadDropout>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Three vectors per query stay in registers.
        if S::REGISTER_COUNT >= 32 { self.run::<S, 8>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl Backward<'_> {
    /// With this many queries at a time.
    #[inline(always)]
    fn run<S: Simd, const QUERIES: usize>(self, simd: S) {
        let Backward { q, k, v, o, d_o, lse, dq, dk, dv, padded, dropout } = self;
        let (lanes, head_size, vectors) = (S::F32_LANES, q.len() / padded, padded / S::F32_LANES);
        let (k, v) = (S::as_simd_f32s(k).0, S::as_simd_f32s(v).0);
        let (dk, dv) = (S::as_mut_simd_f32s(dk).0, S::as_mut_simd_f32s(dv).0);
        let zero = simd.splat_f32s(0.0);
        // delta = Σ o d_o, the sum over keys of weight times its gradient.
        let mut delta = vec![0.0; padded];
        for d in 0..head_size {
            let (o, d_o) = (&o[d * padded..][..padded], &d_o[d * padded..][..padded]);
            for t in 0..padded {
                delta[t] += o[t] * d_o[t];
            }
        }
        // Of these queries: q and d_o, the gradient of q, to be summed over lanes, and the weights
        // and the gradients of the scores of some keys.
        let mut local = vec![([0.0; QUERIES], [0.0; QUERIES]); head_size];
        let mut sums = vec![Aligned([zero; QUERIES]); head_size];
        let mut weights = [Aligned(([zero; QUERIES], [zero; QUERIES])); BLOCKS];
        for t in (0..padded).step_by(QUERIES) {
            for d in 0..head_size {
                local[d] = (*part(q, d * padded + t), *part(d_o, d * padded + t));
                sums[d].0 = [zero; QUERIES];
            }
            let lse = part::<QUERIES>(lse, t);
            let delta = part::<QUERIES>(&delta, t);
            let end = (t + QUERIES).div_ceil(lanes);
            for start in (0..end).step_by(BLOCKS) {
                let blocks = BLOCKS.min(end - start);
                for (block, weights) in weights[..blocks].iter_mut().enumerate() {
                    let block = start + block;
                    let j = block * lanes;
                    let (mut p, mut dp) = ([zero; QUERIES], [zero; QUERIES]);
                    for i in 0..QUERIES {
                        p[i] = simd.splat_f32s(-lse[i]);
                        if dropout.is_none() {
                            dp[i] = simd.splat_f32s(-delta[i]);
                        }
                    }
                    for (d, (q, d_o)) in local.iter().enumerate() {
                        let (k, v) = (k[d * vectors + block], v[d * vectors + block]);
                        for i in 0..QUERIES {
                            p[i] = simd.mul_add_e_f32s(simd.splat_f32s(q[i]), k, p[i]);
                            dp[i] = simd.mul_add_e_f32s(simd.splat_f32s(d_o[i]), v, dp[i]);
                        }
                    }
                    for i in 0..QUERIES {
                        p[i] = exp2s(simd, p[i]);
                    }
                    if j + lanes > t + 1 {
                        for i in 0..QUERIES {
                            let seen = simd.less_than_or_equal_u32s(iota(simd, j), simd.splat_u32s((t + i) as u32));
                            p[i] = simd.select_f32s(seen, p[i], zero);
                        }
                    }
                    let mut ds = [zero; QUERIES];
                    match dropout {
                        None => {
                            for i in 0..QUERIES {
                                ds[i] = simd.mul_f32s(p[i], dp[i]);
                            }
                        }
                        Some(dropout) => {
                            let HeadDropout { dropout, row } = dropout;
                            let cols = simd.mul_u32s(iota(simd, j), simd.splat_u32s(Dropout::col(1)));
                            for i in 0..QUERIES {
                                let factor = factors(simd, &dropout, simd.splat_u32s(dropout.row(row + t + i)), cols);
                                let dp = simd.mul_f32s(dp[i], factor);
                                ds[i] = simd.mul_f32s(p[i], simd.sub_f32s(dp, simd.splat_f32s(delta[i])));
                                p[i] = simd.mul_f32s(p[i], factor);
                            }
                        }
                    }
                    weights.0 = (p, ds);
                }
                for (d, (q, d_o)) in local.iter().enumerate() {
                    let first = d * vectors + start;
                    let (k, dk) = (&k[first..first + blocks], &mut dk[first..first + blocks]);
                    let dv = &mut dv[first..first + blocks];
                    // Sums and factors stay in registers.
                    let mut dq = sums[d].0;
                    let (mut qs, mut d_os) = ([zero; QUERIES], [zero; QUERIES]);
                    for i in 0..QUERIES {
                        (qs[i], d_os[i]) = (simd.splat_f32s(q[i]), simd.splat_f32s(d_o[i]));
                    }
                    for (block, Aligned((p, ds))) in weights[..blocks].iter().enumerate() {
                        let (k, mut dk_sum, mut dv_sum) = (k[block], dk[block], dv[block]);
                        for i in 0..QUERIES {
                            dk_sum = simd.mul_add_e_f32s(qs[i], ds[i], dk_sum);
                            dv_sum = simd.mul_add_e_f32s(d_os[i], p[i], dv_sum);
                            dq[i] = simd.mul_add_e_f32s(ds[i], k, dq[i]);
                        }
                        (dk[block], dv[block]) = (dk_sum, dv_sum);
                    }
                    sums[d].0 = dq;
                }
            }
            for (d, Aligned(sums)) in sums.iter().enumerate() {
                for i in 0..QUERIES {
                    dq[d * padded + t + i] = simd.reduce_sum_f32s(sums[i]);
                }
            }
        }
    }
}

/// Joins all by pairs: a chain would take as long as all the rest.
#[inline(always)]
fn tree<T: Copy>(x: [T; KEYS], join: impl Fn(T, T) -> T) -> T {
    let [a, b, c, d, e, f, g, h] = x;
    join(join(join(a, b), join(c, d)), join(join(e, f), join(g, h)))
}

/// N neighbouring numbers.
#[inline(always)]
fn part<const N: usize>(x: &[f32], start: usize) -> &[f32; N] {
    x[start..start + N].try_into().expect("N numbers")
}

/// start, start + 1, …
#[inline(always)]
fn iota<S: Simd>(simd: S, start: usize) -> S::u32s {
    const IOTA: [u32; 64] = {
        let mut iota = [0; 64];
        let mut i = 0;
        while i < 64 {
            iota[i] = i as u32;
            i += 1;
        }
        iota
    };
    simd.add_u32s(S::as_simd_u32s(&IOTA).0[0], simd.splat_u32s(start as u32))
}

/// The rows' part of dropout's hash, for queries from `t` on.
#[inline(always)]
fn row_keys<S: Simd>(simd: S, d: HeadDropout, t: usize) -> S::u32s {
    let mut keys = simd.splat_u32s(0);
    for (i, key) in bytemuck::cast_slice_mut(std::slice::from_mut(&mut keys)).iter_mut().enumerate() {
        *key = d.dropout.row(d.row + t + i);
    }
    keys
}

/// [`Dropout::factor`] lane by lane.
#[inline(always)]
fn factors<S: Simd>(simd: S, dropout: &Dropout, rows: S::u32s, cols: S::u32s) -> S::f32s {
    let shift = |h, n| simd.xor_u32s(h, simd.wrapping_dyn_shr_u32s(h, simd.splat_u32s(n)));
    let mut h = shift(simd.xor_u32s(rows, cols), 16);
    h = shift(simd.mul_u32s(h, simd.splat_u32s(Dropout::MIX[0])), 13);
    h = shift(simd.mul_u32s(h, simd.splat_u32s(Dropout::MIX[1])), 16);
    let dropped = simd.less_than_u32s(h, simd.splat_u32s(dropout.threshold));
    simd.select_f32s(dropped, simd.splat_f32s(0.0), simd.splat_f32s(dropout.scale))
}
