//! The sizes of one step.

use infer_core::Config;

use super::math::LANES;
use super::products::Products;

/// The model's and the batch's sizes, how work is cut into tasks, and what takes the products.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub config: Config,
    pub sequences: usize,
    pub length: usize,
    /// Positions in a row of transposed activations.
    pub padded: usize,
    /// Positions that products work on at a time; divides `length`.
    pub block: usize,
    /// Positions of a task that sums the weights' gradients: a multiple of `block`.
    pub part: usize,
    pub products: Products,
}

impl Sizes {
    pub fn new(config: Config, sequences: usize, length: usize, products: Products) -> Sizes {
        // An odd multiple, so that neighbouring rows do not compete for the same sets of the cache.
        let padded = (length.div_ceil(LANES) | 1) * LANES;
        const LARGEST: usize = 128;
        const SMALLEST: usize = 32;
        let block = (SMALLEST..=LARGEST).rev().find(|block| length.is_multiple_of(*block)).unwrap_or(length);
        // As many threads have work; each part needs memory of the size of a layer's weights.
        const PARTS: usize = 16;
        let part = (sequences * length / block).div_ceil(PARTS) * block;
        Sizes { config, sequences, length, padded, block, part, products }
    }

    pub fn positions(&self) -> usize {
        self.sequences * self.length
    }

    /// Rows of queries, keys and values that belong to one key/value head.
    pub fn group(&self) -> usize {
        (self.config.kv_mul() + 2) * self.config.head_size()
    }

    /// Rows of queries of one key/value head.
    pub fn queries(&self) -> usize {
        self.config.kv_mul() * self.config.head_size()
    }

    /// Rows of all queries, keys and values.
    pub fn qkv(&self) -> usize {
        self.group() * self.config.n_kv_heads
    }
}
