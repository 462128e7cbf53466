//! The memory that running a model takes.
//!
//! Everything here is `const`, as in `config.rs`.

use crate::config::{Config, WeightType, product, sum};
use crate::error::Error;
use crate::math::LANES;
use crate::sampler::ProbIndex;
#[cfg(feature = "std")]
use crate::scratch::{att_len, packed_len};
use crate::tokenizer::IndexEntry;

/// Type of the cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum KvType {
    /// 4 bytes per value.
    F32,
    /// 1 byte per value, and two f32 scales per position and layer.
    Q8,
}

/// The limits a [`Plan`] is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Limits {
    /// Positions of the KV cache, 1 to `seq_len`.
    pub max_seq: usize,
    /// Tokens per forward call: 1 on a chip, 128 or so to read prompts fast.
    pub batch: usize,
    /// Tasks with scratch of their own: 1 on a chip, the number of threads elsewhere. Each works on
    /// a key/value head, or with a batch on packed weights: no more threads than these read
    /// prompts, whatever the runner has.
    pub threads: usize,
    /// Type of the KV cache.
    pub kv: KvType,
}

/// Sizes of the buffers that a [`State`](crate::State), a [`Sampler`](crate::Sampler) and a
/// [`Tokenizer`](crate::Tokenizer) borrow from the caller, in elements.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Plan {
    /// The model this was planned for.
    pub config: Config,
    /// The limits it was planned for.
    pub limits: Limits,
    /// Activations and logits, `f32`. Touched all the time: fast memory.
    pub hot_f32: usize,
    /// Quantised activations, `i8`.
    pub hot_i8: usize,
    /// Cached keys and values, `f32` or `i8`. Touched once per token: may lie in slower memory.
    pub kv_values: usize,
    /// Scales of an int8 KV cache, `f32`.
    pub kv_scales: usize,
    /// Scratch of top-p sampling, [`ProbIndex`].
    pub sampler: usize,
    /// Index of the tokenizer, [`IndexEntry`].
    pub tokenizer: usize,
}

impl Limits {
    /// The limits of a chip: one token per call, one thread, an f32 cache of `max_seq` positions.
    pub const fn new(max_seq: usize) -> Limits {
        Limits { max_seq, batch: 1, threads: 1, kv: KvType::F32 }
    }

    /// The same with another batch size.
    pub const fn with_batch(mut self, batch: usize) -> Limits {
        self.batch = batch;
        self
    }

    /// The same with another number of threads.
    pub const fn with_threads(mut self, threads: usize) -> Limits {
        self.threads = threads;
        self
    }

    /// The same with a KV cache of this type.
    pub const fn with_kv(mut self, kv: KvType) -> Limits {
        self.kv = kv;
        self
    }
}

impl Config {
    /// Plans the buffers for running this model.
    ///
    /// # Errors
    /// A rule of [`check`](Config::check) is broken, `max_seq` is 0 or above `seq_len`, `batch` or
    /// `threads` is 0, the KV type is not supported, or a size exceeds the address space
    /// ([`Error::TooLarge`]).
    pub const fn plan(&self, limits: Limits) -> Result<Plan, Error> {
        if let Err(e) = self.check() {
            return Err(e);
        }
        if limits.max_seq == 0 || limits.max_seq > self.seq_len {
            let value = limits.max_seq as f64;
            return Err(Error::Setting {
                name: "max_seq",
                value,
                rule: "it must be between 1 and the model's seq_len",
            });
        }
        if limits.batch == 0 {
            return Err(Error::Setting { name: "batch", value: 0.0, rule: "it must be at least 1" });
        }
        if limits.threads == 0 {
            return Err(Error::Setting { name: "threads", value: 0.0, rule: "it must be at least 1" });
        }
        if let KvType::Q8 = limits.kv
            && !self.head_size().is_multiple_of(4)
        {
            return Err(Error::Unsupported { what: "an int8 KV cache with a head size that is no multiple of 4" });
        }
        if let KvType::Q8 = limits.kv
            && self.head_size() > MAX_HEAD_SIZE_I8
        {
            return Err(Error::Unsupported { what: "an int8 KV cache with a head size above 133,144" });
        }
        let per_token = HotSizes::new(self, limits.kv);
        // u64 throughout, so that a 32-bit chip sees the overflow instead of a small number.
        let hot_f32 = sum(&[
            product(&[limits.batch as u64, per_token.total]),
            product(&[scratch_parts(self, &limits) as u64, scratch_len(self, &limits) as u64]),
            Some((self.head_size() / 2) as u64), // rope frequencies
            Some(self.vocab_size as u64),        // logits
        ]);
        let hot_i8 = match per_token.quantized {
            0 => Some(0),
            n => sum(&[product(&[limits.batch as u64, n as u64, XQ_BYTES as u64]), Some(XQ_ALIGN as u64 - 1)]),
        };
        let kv_dim = self.kv_dim() as u64;
        let slots = block_len(limits.max_seq) as u64;
        let n_layers = self.n_layers as u64;
        let keys = product(&[n_layers, kv_dim, slots]);
        let (values, value_bytes, kv_scales) = match limits.kv {
            KvType::F32 => (product(&[n_layers, kv_dim, limits.max_seq as u64]), 4, Some(0)),
            KvType::Q8 => (keys, 1, product(&[2, n_layers, slots])),
        };
        let kv_values = sum(&[keys, values]);
        let kv = (to_elements(kv_values, value_bytes), to_elements(kv_scales, 4));
        match (to_elements(hot_f32, 4), to_elements(hot_i8, 1), kv) {
            (Some(hot_f32), Some(hot_i8), (Some(kv_values), Some(kv_scales))) => Ok(Plan {
                config: *self,
                limits,
                hot_f32,
                hot_i8,
                kv_values,
                kv_scales,
                sampler: self.vocab_size,
                tokenizer: self.vocab_size,
            }),
            _ => Err(Error::TooLarge),
        }
    }
}

impl Plan {
    /// Bytes of the hot buffers.
    pub const fn hot_bytes(&self) -> u64 {
        self.hot_f32 as u64 * 4 + self.hot_i8 as u64
    }

    /// Bytes of the KV cache.
    pub const fn kv_bytes(&self) -> u64 {
        let value_bytes = match self.limits.kv {
            KvType::F32 => 4,
            KvType::Q8 => 1,
        };
        self.kv_values as u64 * value_bytes + self.kv_scales as u64 * 4
    }

    /// Bytes of the sampler's scratch, used by top-p only.
    pub const fn sampler_bytes(&self) -> u64 {
        self.sampler as u64 * size_of::<ProbIndex>() as u64
    }

    /// Bytes of the tokenizer's index. It may be built at compile time and lie in flash.
    pub const fn tokenizer_bytes(&self) -> u64 {
        self.tokenizer as u64 * size_of::<IndexEntry>() as u64
    }
}

/// Parts of the scratch: the most tasks that use it at a time.
pub(crate) const fn scratch_parts(config: &Config, limits: &Limits) -> usize {
    if reads_batches(limits) { limits.threads } else { min(limits.threads, config.n_kv_heads) }
}

/// Numbers of each part: attention weights (kv_mul, positions), or what kernels for many tokens
/// take.
pub(crate) const fn scratch_len(config: &Config, limits: &Limits) -> usize {
    let att = config.kv_mul().saturating_mul(block_len(limits.max_seq));
    #[cfg(feature = "std")]
    if reads_batches(limits) {
        let packed = packed_len(max(config.dim, config.hidden_dim), config.weights);
        return max(att, max(att_len(limits.max_seq), packed));
    }
    att
}

/// Whether there are kernels for many tokens, and batches for them.
const fn reads_batches(limits: &Limits) -> bool {
    cfg!(feature = "std") && limits.batch > 1
}

/// The largest head size with int8 scores that fit an i32: products of a query and a key are at
/// most 127².
const MAX_HEAD_SIZE_I8: usize = i32::MAX as usize / (127 * 127);
/// Bytes of a quantised activation: kernels may widen it.
pub(crate) const XQ_BYTES: usize = 2;
/// Alignment of quantised activations. The caller's buffer may lie anywhere, so the plan has room
/// to move up.
pub(crate) const XQ_ALIGN: usize = 4;

/// Elements per token of a batch, counted in one place for [`Config::plan`] and
/// [`State::new`](crate::State::new).
pub(crate) struct HotSizes {
    /// Elements of `x`, `xb` and `q` each. Everything below is f32 unless stated.
    pub dim: usize,
    /// Elements of `hb` and `hb2` each. They also hold k and v before these go to the cache, hence
    /// the maximum.
    pub hidden: usize,
    /// Cosines and sines of the position's angles.
    pub rope: usize,
    /// Quantised activations, of [`XQ_BYTES`] i8 each: inputs of int8 matrices, and queries for an
    /// int8 KV cache.
    pub quantized: usize,
    /// Their scales.
    pub scales: usize,
    /// The sum of all f32 elements.
    pub total: u64,
}

impl HotSizes {
    pub const fn new(config: &Config, kv: KvType) -> HotSizes {
        let hidden = max(config.hidden_dim, config.kv_dim());
        let rope = config.head_size();
        let (queries, query_scales) = match kv {
            KvType::F32 => (0, 0),
            KvType::Q8 => (config.dim, config.n_heads),
        };
        let (inputs, input_scales) = match config.weights {
            WeightType::F32 => (0, 0),
            WeightType::Q8 { group_size } => {
                let inputs = max(config.dim, config.hidden_dim);
                match inputs.checked_div(group_size) {
                    Some(scales) => (inputs, scales),
                    None => (inputs, 0),
                }
            }
        };
        let (quantized, scales) = (max(inputs, queries), max(input_scales, query_scales));
        let total = 3 * config.dim as u64 + 2 * hidden as u64 + rope as u64 + scales as u64;
        HotSizes { dim: config.dim, hidden, rope, quantized, scales, total }
    }
}

/// Positions rounded up to whole blocks: the room for cached keys, and for attention weights.
pub(crate) const fn block_len(positions: usize) -> usize {
    positions.saturating_add(LANES - 1) / LANES * LANES
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// A number of elements as `usize`, if that many of `size` bytes fit the address space.
const fn to_elements(n: Option<u64>, size: u64) -> Option<usize> {
    match n {
        Some(n) => match n.checked_mul(size) {
            Some(bytes) if bytes <= isize::MAX as u64 => Some(n as usize),
            _ => None,
        },
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors_say_what_they_change() {
        const LIMITS: Limits = Limits::new(7);
        assert_eq!(LIMITS, Limits { max_seq: 7, batch: 1, threads: 1, kv: KvType::F32 });
        let other = LIMITS.with_batch(2).with_threads(3).with_kv(KvType::Q8);
        assert_eq!(other, Limits { max_seq: 7, batch: 2, threads: 3, kv: KvType::Q8 });
    }
}
