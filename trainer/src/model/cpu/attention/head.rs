//! What forward and backward share.

use pulp::{Simd, bytemuck};

use crate::model::dropout::Dropout;

/// A query head with its key/value head.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub q: &'a [f32], // (head_size, padded)
    pub k: &'a [f32], // (head_size, padded)
    pub v: &'a [f32], // (head_size, padded)
    pub padded: usize,
    /// Each query sees the keys from here on, (padded). `None`: all before it.
    pub starts: Option<&'a [u32]>,
    pub dropout: Option<HeadDropout>,
}

/// Dropout of a head's attention weights: (query, key) is (row + query, key) of the whole matrix.
#[derive(Clone, Copy)]
pub struct HeadDropout {
    pub dropout: Dropout,
    pub row: usize,
}

/// Aligns vectors to a cache line. Without it they are aligned to one f32.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Aligned<T>(pub T);

impl Head<'_> {
    pub fn size(&self) -> usize {
        self.q.len() / self.padded
    }

    /// The first and the last start of `n` queries from `t` on.
    #[inline(always)]
    pub fn starts(&self, t: usize, n: usize) -> (usize, usize) {
        self.starts.map_or((0, 0), |starts| (starts[t] as usize, starts[t + n - 1] as usize))
    }
}

impl HeadDropout {
    /// The rows' part of the hash, for queries from `t` on.
    #[inline(always)]
    pub fn rows<S: Simd>(&self, simd: S, t: usize) -> S::u32s {
        let mut keys = simd.splat_u32s(0);
        for (i, key) in bytemuck::cast_slice_mut(std::slice::from_mut(&mut keys)).iter_mut().enumerate() {
            *key = self.dropout.row(self.row + t + i);
        }
        keys
    }

    /// [`Dropout::factor`] lane by lane.
    #[inline(always)]
    pub fn factors<S: Simd>(&self, simd: S, rows: S::u32s, cols: S::u32s) -> S::f32s {
        let shift = |h, n| simd.xor_u32s(h, simd.wrapping_dyn_shr_u32s(h, simd.splat_u32s(n)));
        let mut h = shift(simd.xor_u32s(rows, cols), 16);
        h = shift(simd.mul_u32s(h, simd.splat_u32s(Dropout::MIX[0])), 13);
        h = shift(simd.mul_u32s(h, simd.splat_u32s(Dropout::MIX[1])), 16);
        let dropped = simd.less_than_u32s(h, simd.splat_u32s(self.dropout.threshold));
        simd.select_f32s(dropped, simd.splat_f32s(0.0), simd.splat_f32s(self.dropout.scale))
    }
}

/// N neighbouring numbers.
#[inline(always)]
pub fn part<T, const N: usize>(x: &[T], start: usize) -> &[T; N] {
    x[start..start + N].try_into().expect("N numbers")
}

/// start, start + 1, …
#[inline(always)]
pub fn iota<S: Simd>(simd: S, start: usize) -> S::u32s {
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
