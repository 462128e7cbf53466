//! The gradients of attention.

use pulp::{Simd, WithSimd};

use super::head::{Aligned, Head, HeadDropout, iota, part};
use crate::model::cpu::math::exp2s;
use crate::model::dropout::Dropout;

/// Vectors of keys at a time: their weights stay in the first-level cache.
const BLOCKS: usize = 8;

/// Gradients of [`Forward`](super::Forward): dq is written, dk and dv are added to. As scores are
/// in log2, dq and dk are to be multiplied by ln(2).
pub struct Backward<'a> {
    pub head: Head<'a>,
    pub o: &'a [f32],      // (head_size, padded)
    pub d_o: &'a [f32],    // (head_size, padded)
    pub lse: &'a [f32],    // (padded)
    pub dq: &'a mut [f32], // (head_size, padded)
    pub dk: &'a mut [f32], // (head_size, padded)
    pub dv: &'a mut [f32], // (head_size, padded)
}

/// q and d_o of neighbouring queries, for an element of the head
type Element<const QUERIES: usize> = ([f32; QUERIES], [f32; QUERIES]);

/// The weights of some keys and the gradients of their scores, for each query
type Weights<V, const QUERIES: usize> = Aligned<([V; QUERIES], [V; QUERIES])>;

/// Neighbouring queries.
struct Queries<'a, const QUERIES: usize> {
    t: usize, // the first
    elements: &'a [Element<QUERIES>],
    lse: &'a [f32; QUERIES],
    delta: &'a [f32; QUERIES],
    starts: Option<&'a [u32; QUERIES]>,
    dropout: Option<HeadDropout>,
}

/// Keys and values in vectors of positions, (head_size, vectors).
#[derive(Clone, Copy)]
struct Keys<'a, V> {
    k: &'a [V],
    v: &'a [V],
    vectors: usize,
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
        let delta = self.delta();
        let Backward { head, d_o, lse, dq, dk, dv, .. } = self;
        let Head { q, k, v, padded, dropout, .. } = head;
        let (lanes, vectors, head_size) = (S::F32_LANES, padded / S::F32_LANES, q.len() / padded);
        let keys = Keys { k: S::as_simd_f32s(k).0, v: S::as_simd_f32s(v).0, vectors };
        let (dk, dv) = (S::as_mut_simd_f32s(dk).0, S::as_mut_simd_f32s(dv).0);
        let zero = simd.splat_f32s(0.0);
        let mut elements = vec![([0.0; QUERIES], [0.0; QUERIES]); head_size];
        // The gradient of q, to be summed over lanes.
        let mut sums = vec![Aligned([zero; QUERIES]); head_size];
        let mut weights = [Aligned(([zero; QUERIES], [zero; QUERIES])); BLOCKS];
        for t in (0..padded).step_by(QUERIES) {
            for d in 0..head_size {
                elements[d] = (*part(q, d * padded + t), *part(d_o, d * padded + t));
                sums[d].0 = [zero; QUERIES];
            }
            let (lse, delta) = (part(lse, t), part(&delta, t));
            let starts = head.starts.map(|starts| part(starts, t));
            let queries = Queries { t, elements: &elements, lse, delta, starts, dropout };
            let end = (t + QUERIES).div_ceil(lanes);
            for start in (head.starts(t, QUERIES).0 / lanes..end).step_by(BLOCKS) {
                let blocks = BLOCKS.min(end - start);
                let weights = &mut weights[..blocks];
                for block in 0..blocks {
                    weights[block] = queries.weights(simd, keys, start + block);
                }
                for d in 0..head_size {
                    let first = d * vectors + start;
                    let (k, dk) = (&keys.k[first..first + blocks], &mut dk[first..first + blocks]);
                    let dv = &mut dv[first..first + blocks];
                    add_gradients(simd, &elements[d], weights, k, &mut sums[d].0, dk, dv);
                }
            }
            for (d, Aligned(sums)) in sums.iter().enumerate() {
                for i in 0..QUERIES {
                    dq[d * padded + t + i] = simd.reduce_sum_f32s(sums[i]);
                }
            }
        }
    }

    /// Σ o d_o for each query: the sum over keys of weight times its gradient.
    #[inline(always)]
    fn delta(&self) -> Vec<f32> {
        let padded = self.head.padded;
        let mut delta = vec![0.0; padded];
        for d in 0..self.head.size() {
            let (o, d_o) = (&self.o[d * padded..][..padded], &self.d_o[d * padded..][..padded]);
            for t in 0..padded {
                delta[t] += o[t] * d_o[t];
            }
        }
        delta
    }
}

impl<const QUERIES: usize> Queries<'_, QUERIES> {
    /// Those of the keys in a vector.
    #[inline(always)]
    fn weights<S: Simd>(&self, simd: S, keys: Keys<S::f32s>, block: usize) -> Weights<S::f32s, QUERIES> {
        let zero = simd.splat_f32s(0.0);
        let j = block * S::F32_LANES;
        let (mut p, mut dp) = ([zero; QUERIES], [zero; QUERIES]);
        for i in 0..QUERIES {
            p[i] = simd.splat_f32s(-self.lse[i]);
            if self.dropout.is_none() {
                dp[i] = simd.splat_f32s(-self.delta[i]);
            }
        }
        for (d, (q, d_o)) in self.elements.iter().enumerate() {
            let (k, v) = (keys.k[d * keys.vectors + block], keys.v[d * keys.vectors + block]);
            for i in 0..QUERIES {
                p[i] = simd.mul_add_e_f32s(simd.splat_f32s(q[i]), k, p[i]);
                dp[i] = simd.mul_add_e_f32s(simd.splat_f32s(d_o[i]), v, dp[i]);
            }
        }
        for i in 0..QUERIES {
            p[i] = exp2s(simd, p[i]);
        }
        if j + S::F32_LANES > self.t + 1 {
            for i in 0..QUERIES {
                let seen = simd.less_than_or_equal_u32s(iota(simd, j), simd.splat_u32s((self.t + i) as u32));
                p[i] = simd.select_f32s(seen, p[i], zero);
            }
        }
        if let Some(starts) = self.starts
            && j < starts[QUERIES - 1] as usize
        {
            for i in 0..QUERIES {
                let seen = simd.greater_than_or_equal_u32s(iota(simd, j), simd.splat_u32s(starts[i]));
                p[i] = simd.select_f32s(seen, p[i], zero);
            }
        }
        let mut ds = [zero; QUERIES];
        match self.dropout {
            None => {
                for i in 0..QUERIES {
                    ds[i] = simd.mul_f32s(p[i], dp[i]);
                }
            }
            Some(dropout) => {
                let cols = simd.mul_u32s(iota(simd, j), simd.splat_u32s(Dropout::col(1)));
                for i in 0..QUERIES {
                    let row = simd.splat_u32s(dropout.dropout.row(dropout.row + self.t + i));
                    let factor = dropout.factors(simd, row, cols);
                    let dp = simd.mul_f32s(dp[i], factor);
                    ds[i] = simd.mul_f32s(p[i], simd.sub_f32s(dp, simd.splat_f32s(self.delta[i])));
                    p[i] = simd.mul_f32s(p[i], factor);
                }
            }
        }
        Aligned((p, ds))
    }
}

/// Adds what an element of q and d_o gives to that element's gradients of these keys, of their
/// values and of the queries.
#[inline(always)]
fn add_gradients<S: Simd, const QUERIES: usize>(
    simd: S,
    (q, d_o): &Element<QUERIES>,
    weights: &[Weights<S::f32s, QUERIES>],
    k: &[S::f32s],
    dq: &mut [S::f32s; QUERIES],
    dk: &mut [S::f32s],
    dv: &mut [S::f32s],
) {
    // Sums and factors stay in registers.
    let mut sums = *dq;
    let zero = simd.splat_f32s(0.0);
    let (mut qs, mut d_os) = ([zero; QUERIES], [zero; QUERIES]);
    for i in 0..QUERIES {
        (qs[i], d_os[i]) = (simd.splat_f32s(q[i]), simd.splat_f32s(d_o[i]));
    }
    for (block, Aligned((p, ds))) in weights.iter().enumerate() {
        let (k, mut dk_sum, mut dv_sum) = (k[block], dk[block], dv[block]);
        for i in 0..QUERIES {
            dk_sum = simd.mul_add_e_f32s(qs[i], ds[i], dk_sum);
            dv_sum = simd.mul_add_e_f32s(d_os[i], p[i], dv_sum);
            sums[i] = simd.mul_add_e_f32s(ds[i], k, sums[i]);
        }
        (dk[block], dv[block]) = (dk_sum, dv_sum);
    }
    *dq = sums;
}
