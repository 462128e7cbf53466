//! Causal attention of one head, forward and backward, without a matrix of attention weights.
//!
//! q, k, v and their gradients are transposed, `(head_size, padded)`: positions are contiguous, so that every load of a vector is
//! one of neighbouring positions, whatever the head size. Scores are in units of log2 (q comes scaled by log2(e) /
//! √head_size). Forward keeps the running maximum and sum of FlashAttention (Dao et al. 2022, arXiv:2205.14135), lanes are
//! queries; what backward needs is one number per query, the log2 of the sum. Backward recomputes the weights, lanes are
//! keys, and the gradient of q is summed over lanes at the end.
//!
//! Rows are padded with zeros to `padded` positions, a multiple of 16: keys there are masked, as they come after every query, and
//! queries there have gradients of zero.

use pulp::{Simd, WithSimd};

use super::super::dropout::Dropout;
use super::math::exp2s;

/// Keys at a time in forward.
const KEYS: usize = 8;
/// Queries at a time in backward.
const QUERIES: usize = 4;

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
        let lanes = S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let masked = simd.splat_f32s(-1e30);
        let head_size = q.len() / padded;
        let mut local = vec![(zero, zero); head_size]; // q and o of these queries
        for t in (0..padded).step_by(lanes) {
            for (local, q) in local.iter_mut().zip(q.chunks_exact(padded)) {
                *local = (simd.partial_load_f32s(&q[t..t + lanes]), zero);
            }
            let mut max = masked;
            let mut sum = zero;
            let positions = iota(simd, t);
            let rows = dropout.map(|d| row_keys(simd, d, t));
            for j in (0..t + lanes).step_by(KEYS) {
                let mut s = [zero; KEYS];
                for ((q, _), k) in local.iter().zip(k.chunks_exact(padded)) {
                    let k: &[f32; KEYS] = k[j..j + KEYS].try_into().expect("KEYS keys");
                    for (s, k) in s.iter_mut().zip(k) {
                        *s = simd.mul_add_e_f32s(*q, simd.splat_f32s(*k), *s);
                    }
                }
                let diagonal = j + KEYS > t + 1;
                if diagonal {
                    for (i, s) in s.iter_mut().enumerate() {
                        let seen = simd.less_than_or_equal_u32s(simd.splat_u32s((j + i) as u32), positions);
                        *s = simd.select_f32s(seen, *s, masked);
                    }
                }
                let block_max = s.iter().fold(max, |max, s| simd.max_f32s(max, *s));
                let correction = exp2s(simd, simd.sub_f32s(max, block_max));
                max = block_max;
                for s in &mut s {
                    *s = exp2s(simd, simd.sub_f32s(*s, max));
                }
                if diagonal {
                    for (i, s) in s.iter_mut().enumerate() {
                        let seen = simd.less_than_or_equal_u32s(simd.splat_u32s((j + i) as u32), positions);
                        *s = simd.select_f32s(seen, *s, zero);
                    }
                }
                sum = simd.mul_add_e_f32s(sum, correction, s.iter().fold(zero, |sum, s| simd.add_f32s(sum, *s)));
                if let (Some(d), Some(rows)) = (dropout, rows) {
                    for (i, s) in s.iter_mut().enumerate() {
                        let col = simd.splat_u32s(Dropout::col(j + i));
                        *s = simd.mul_f32s(*s, factors(simd, &d.dropout, rows, col));
                    }
                }
                for ((_, o), v) in local.iter_mut().zip(v.chunks_exact(padded)) {
                    let v: &[f32; KEYS] = v[j..j + KEYS].try_into().expect("KEYS values");
                    let mut sum = simd.mul_f32s(*o, correction);
                    for (s, v) in s.iter().zip(v) {
                        sum = simd.mul_add_e_f32s(*s, simd.splat_f32s(*v), sum);
                    }
                    *o = sum;
                }
            }
            let inverse = simd.div_f32s(simd.splat_f32s(1.0), sum);
            for ((_, local), o) in local.iter().zip(o.chunks_exact_mut(padded)) {
                simd.partial_store_f32s(&mut o[t..t + lanes], simd.mul_f32s(*local, inverse));
            }
            let lse = &mut lse[t..t + lanes];
            simd.partial_store_f32s(lse, sum);
            lse.iter_mut().for_each(|x| *x = x.log2());
            let log_sum = simd.partial_load_f32s(lse);
            simd.partial_store_f32s(lse, simd.add_f32s(max, log_sum));
        }
    }
}

/// Gradients of [`Forward`]: dq is written, dk and dv are added to. As scores are in log2, dq and dk are to be multiplied
/// by ln(2).
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
        let Backward { q, k, v, o, d_o, lse, dq, dk, dv, padded, dropout } = self;
        let lanes = S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let head_size = q.len() / padded;
        // delta = Σ o d_o, the sum over keys of weight times its gradient.
        let mut delta = vec![0.0; padded];
        for (o, d_o) in o.chunks_exact(padded).zip(d_o.chunks_exact(padded)) {
            for ((delta, o), d_o) in delta.iter_mut().zip(o).zip(d_o) {
                *delta += o * d_o;
            }
        }
        let mut local = vec![[zero; QUERIES]; head_size]; // gradient of these queries, to be summed over lanes
        for t in (0..padded).step_by(QUERIES) {
            local.fill([zero; QUERIES]);
            let at = |x: &[f32]| -> [f32; QUERIES] { x[t..t + QUERIES].try_into().expect("QUERIES queries") };
            let (lse, delta) = (at(lse).map(|x| simd.splat_f32s(x)), at(&delta).map(|x| simd.splat_f32s(x)));
            for j in (0..t + QUERIES).step_by(lanes) {
                let (mut p, mut dp) = ([zero; QUERIES], [zero; QUERIES]);
                let heads = q.chunks_exact(padded).zip(d_o.chunks_exact(padded));
                let keys = k.chunks_exact(padded).zip(v.chunks_exact(padded));
                for ((q, d_o), (k, v)) in heads.zip(keys) {
                    let (q, d_o) = (at(q), at(d_o));
                    let k = simd.partial_load_f32s(&k[j..j + lanes]);
                    let v = simd.partial_load_f32s(&v[j..j + lanes]);
                    for i in 0..QUERIES {
                        p[i] = simd.mul_add_e_f32s(simd.splat_f32s(q[i]), k, p[i]);
                        dp[i] = simd.mul_add_e_f32s(simd.splat_f32s(d_o[i]), v, dp[i]);
                    }
                }
                for i in 0..QUERIES {
                    p[i] = exp2s(simd, simd.sub_f32s(p[i], lse[i]));
                }
                if j + lanes > t + 1 {
                    for (i, p) in p.iter_mut().enumerate() {
                        let seen = simd.less_than_or_equal_u32s(iota(simd, j), simd.splat_u32s((t + i) as u32));
                        *p = simd.select_f32s(seen, *p, zero);
                    }
                }
                let mut ds = [zero; QUERIES];
                match dropout {
                    None => {
                        for i in 0..QUERIES {
                            ds[i] = simd.mul_f32s(p[i], simd.sub_f32s(dp[i], delta[i]));
                        }
                    }
                    Some(d) => {
                        let cols = simd.mul_u32s(iota(simd, j), simd.splat_u32s(Dropout::col(1)));
                        for i in 0..QUERIES {
                            let row = simd.splat_u32s(d.dropout.row(d.row + t + i));
                            let factor = factors(simd, &d.dropout, row, cols);
                            ds[i] = simd.mul_f32s(p[i], simd.sub_f32s(simd.mul_f32s(dp[i], factor), delta[i]));
                            p[i] = simd.mul_f32s(p[i], factor);
                        }
                    }
                }
                let heads = q.chunks_exact(padded).zip(d_o.chunks_exact(padded)).zip(k.chunks_exact(padded));
                let grads = dk.chunks_exact_mut(padded).zip(dv.chunks_exact_mut(padded)).zip(&mut local);
                for (((q, d_o), k), ((dk, dv), dq)) in heads.zip(grads) {
                    let (q, d_o) = (at(q), at(d_o));
                    let (dk, dv) = (&mut dk[j..j + lanes], &mut dv[j..j + lanes]);
                    let k = simd.partial_load_f32s(&k[j..j + lanes]);
                    let mut dk_sum = simd.partial_load_f32s(dk);
                    let mut dv_sum = simd.partial_load_f32s(dv);
                    for i in 0..QUERIES {
                        dk_sum = simd.mul_add_e_f32s(simd.splat_f32s(q[i]), ds[i], dk_sum);
                        dv_sum = simd.mul_add_e_f32s(simd.splat_f32s(d_o[i]), p[i], dv_sum);
                        dq[i] = simd.mul_add_e_f32s(ds[i], k, dq[i]);
                    }
                    simd.partial_store_f32s(dk, dk_sum);
                    simd.partial_store_f32s(dv, dv_sum);
                }
            }
            for (dq, local) in dq.chunks_exact_mut(padded).zip(&local) {
                for (dq, local) in dq[t..t + QUERIES].iter_mut().zip(local) {
                    *dq = simd.reduce_sum_f32s(*local);
                }
            }
        }
    }
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
    simd.add_u32s(simd.partial_load_u32s(&IOTA[..S::F32_LANES]), simd.splat_u32s(start as u32))
}

/// The rows' part of dropout's hash, for queries from `t` on.
#[inline(always)]
fn row_keys<S: Simd>(simd: S, d: HeadDropout, t: usize) -> S::u32s {
    let mut keys = [0; 64];
    let keys = &mut keys[..S::F32_LANES];
    for (i, key) in keys.iter_mut().enumerate() {
        *key = d.dropout.row(d.row + t + i);
    }
    simd.partial_load_u32s(keys)
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
