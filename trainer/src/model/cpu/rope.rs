//! The rotary position embedding of transposed queries and keys.

use std::f32::consts::{LN_2, LOG2_E};

use itertools::izip;

use super::buffer::Buffer;
use super::sizes::Sizes;
use crate::model::rope::rope_tables;

/// cos and sin of the rotary angles, `(head_size / 2, padded)`.
#[derive(Default)]
pub(super) struct Rope {
    cos: Buffer,
    sin: Buffer,
}

impl Rope {
    pub fn new(sizes: &Sizes) -> Rope {
        let pairs = sizes.config.head_size() / 2;
        let (cos, sin) = rope_tables(&sizes.config, sizes.length);
        let transpose = |table: Vec<f32>| {
            let mut transposed = Buffer::zeros(pairs * sizes.padded);
            for (i, x) in table.into_iter().enumerate() {
                transposed[i % pairs * sizes.padded + i / pairs] = x;
            }
            transposed
        };
        Rope { cos: transpose(cos), sin: transpose(sin) }
    }

    /// Rotates the queries and the key of a key/value head's rows of qkv, and scales the queries
    /// for attention.
    pub fn forward(&self, sizes: &Sizes, qkv: &mut [f32]) {
        let scale = LOG2_E / (sizes.config.head_size() as f32).sqrt();
        let (q, kv) = qkv.split_at_mut(sizes.queries() * sizes.padded);
        self.rotate(sizes, q, scale, 1.0);
        self.rotate(sizes, &mut kv[..sizes.config.head_size() * sizes.padded], 1.0, 1.0);
    }

    /// The same for their gradients, which attention leaves without the factor ln(2).
    pub fn backward(&self, sizes: &Sizes, dqkv: &mut [f32]) {
        let scale = 1.0 / (sizes.config.head_size() as f32).sqrt();
        let (dq, dkv) = dqkv.split_at_mut(sizes.queries() * sizes.padded);
        self.rotate(sizes, dq, scale, -1.0);
        self.rotate(sizes, &mut dkv[..sizes.config.head_size() * sizes.padded], LN_2, -1.0);
    }

    /// Rotates pairs of rows by `sign` times the angles, and scales them.
    fn rotate(&self, sizes: &Sizes, rows: &mut [f32], scale: f32, sign: f32) {
        let padded = sizes.padded;
        for head in rows.chunks_exact_mut(sizes.config.head_size() * padded) {
            let pairs = head.chunks_exact_mut(2 * padded);
            for (pair, cos, sin) in izip!(pairs, self.cos.chunks_exact(padded), self.sin.chunks_exact(padded)) {
                let (x0, x1) = pair.split_at_mut(padded);
                for (x0, x1, cos, sin) in izip!(x0, x1, cos, sin) {
                    let (cos, sin) = (scale * cos, sign * scale * sin);
                    (*x0, *x1) = (*x0 * cos - *x1 * sin, *x0 * sin + *x1 * cos);
                }
            }
        }
    }
}
