//! The output of attention.

use pulp::{Simd, WithSimd};

use super::head::{Aligned, Head, iota, part};
use crate::model::cpu::math::exp2s;
use crate::model::dropout::Dropout;

/// Keys at a time. Sixteen spill even 32 registers.
const KEYS: usize = 8;

/// o = softmax(q·k) v of one head.
pub struct Forward<'a> {
    pub head: Head<'a>,
    pub o: &'a mut [f32],   // (head_size, padded)
    pub lse: &'a mut [f32], // (padded)
}

/// A vector of queries and what is known of their softmax so far.
struct Queries<S: Simd> {
    positions: S::u32s,
    starts: S::u32s,
    rows: S::u32s, // for dropout
    max: S::f32s,
    sum: S::f32s,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Forward { head, o, lse } = self;
        let (lanes, vectors) = (S::F32_LANES, head.padded / S::F32_LANES);
        let (qs, os) = (S::as_simd_f32s(head.q).0, S::as_mut_simd_f32s(o).0);
        let zero = simd.splat_f32s(0.0);
        let mut local = vec![Aligned([zero; 2]); head.size()]; // q and o of these queries
        for block in 0..vectors {
            let t = block * lanes;
            for d in 0..local.len() {
                local[d] = Aligned([qs[d * vectors + block], zero]);
            }
            let mut queries = Queries::new(simd, &head, t);
            let (first, last) = head.starts(t, lanes);
            for j in (first / KEYS * KEYS..t + lanes).step_by(KEYS) {
                let hides = j + KEYS > t + 1 || j < last;
                queries.attend(simd, &head, &mut local, j, hides);
            }
            let inverse = simd.div_f32s(simd.splat_f32s(1.0), queries.sum);
            for (d, Aligned([_, o])) in local.iter().enumerate() {
                os[d * vectors + block] = simd.mul_f32s(*o, inverse);
            }
            queries.log_sum(simd, &mut lse[t..t + lanes]);
        }
    }
}

impl<S: Simd> Queries<S> {
    /// Those from `t` on.
    #[inline(always)]
    fn new(simd: S, head: &Head, t: usize) -> Self {
        let positions = iota(simd, t);
        let rows = match head.dropout {
            Some(dropout) => dropout.rows(simd, t),
            None => positions,
        };
        let starts = head.starts.map_or(simd.splat_u32s(0), |starts| S::as_simd_u32s(starts).0[t / S::F32_LANES]);
        Queries { positions, starts, rows, max: simd.splat_f32s(-1e30), sum: simd.splat_f32s(0.0) }
    }

    /// Adds keys and values from `j` on to the softmax and to o. If the block `hides` keys, each
    /// query sees only those that are not after it, nor before its start.
    #[inline(always)]
    fn attend(&mut self, simd: S, head: &Head, local: &mut [Aligned<[S::f32s; 2]>], j: usize, hides: bool) {
        let mut s = scores(simd, head, local, j);
        if hides {
            self.mask(simd, &mut s, j, -1e30);
        }
        let block_max = tree(
            s,
            #[inline(always)]
            |a, b| simd.max_f32s(a, b),
        );
        let block_max = simd.max_f32s(self.max, block_max);
        let correction = exp2s(simd, simd.sub_f32s(self.max, block_max));
        self.max = block_max;
        for i in 0..KEYS {
            s[i] = exp2s(simd, simd.sub_f32s(s[i], self.max));
        }
        if hides {
            self.mask(simd, &mut s, j, 0.0);
        }
        let block_sum = tree(
            s,
            #[inline(always)]
            |a, b| simd.add_f32s(a, b),
        );
        self.sum = simd.mul_add_e_f32s(self.sum, correction, block_sum);
        if let Some(dropout) = head.dropout {
            for i in 0..KEYS {
                let col = simd.splat_u32s(Dropout::col(j + i));
                s[i] = simd.mul_f32s(s[i], dropout.factors(simd, self.rows, col));
            }
        }
        for (d, Aligned([_, o])) in local.iter_mut().enumerate() {
            let v = part::<_, KEYS>(head.v, d * head.padded + j);
            // Two sums: half the latency.
            let (mut even, mut odd) = (simd.mul_f32s(*o, correction), simd.splat_f32s(0.0));
            for i in (0..KEYS).step_by(2) {
                even = simd.mul_add_e_f32s(s[i], simd.splat_f32s(v[i]), even);
                odd = simd.mul_add_e_f32s(s[i + 1], simd.splat_f32s(v[i + 1]), odd);
            }
            *o = simd.add_f32s(even, odd);
        }
    }

    /// Writes `masked` where a query does not see a key; the first key is `j`.
    #[inline(always)]
    fn mask(&self, simd: S, s: &mut [S::f32s; KEYS], j: usize, masked: f32) {
        for i in 0..KEYS {
            let key = simd.splat_u32s((j + i) as u32);
            let not_after = simd.less_than_or_equal_u32s(key, self.positions);
            let seen = simd.and_m32s(not_after, simd.greater_than_or_equal_u32s(key, self.starts));
            s[i] = simd.select_f32s(seen, s[i], simd.splat_f32s(masked));
        }
    }

    /// lse = max + log2(sum)
    #[inline(always)]
    fn log_sum(&self, simd: S, lse: &mut [f32]) {
        S::as_mut_simd_f32s(lse).0[0] = self.sum;
        for x in &mut *lse {
            *x = x.log2();
        }
        let lse = &mut S::as_mut_simd_f32s(lse).0[0];
        *lse = simd.add_f32s(self.max, *lse);
    }
}

/// q·k for keys from `j` on
#[inline(always)]
fn scores<S: Simd>(simd: S, head: &Head, local: &[Aligned<[S::f32s; 2]>], j: usize) -> [S::f32s; KEYS] {
    let mut s = [simd.splat_f32s(0.0); KEYS];
    for (d, Aligned([q, _])) in local.iter().enumerate() {
        let k = part::<_, KEYS>(head.k, d * head.padded + j);
        for i in 0..KEYS {
            s[i] = simd.mul_add_e_f32s(*q, simd.splat_f32s(k[i]), s[i]);
        }
    }
    s
}

/// Joins all by pairs: a chain would take as long as all the rest.
#[inline(always)]
fn tree<T: Copy>(x: [T; KEYS], join: impl Fn(T, T) -> T) -> T {
    let [a, b, c, d, e, f, g, h] = x;
    join(join(join(a, b), join(c, d)), join(join(e, f), join(g, h)))
}
