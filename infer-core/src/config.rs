//! Hyperparameters of a model, and the memory that running it takes.
//!
//! Everything here is `const`, so that firmware sizes its statics from `include_bytes!` at compile
//! time. Const code has no `?` and no `for`, hence the plain style.

use crate::error::Error;
use crate::format;
use crate::math::LANES;
use crate::sampler::ProbIndex;
use crate::tokenizer::IndexEntry;

/// How the matrices of a model are stored. Norm weights are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum WeightType {
    /// 4 bytes per weight.
    F32,
    /// One byte per weight and one f32 scale per `group_size` weights.
    Q8 {
        /// Weights that share a scale: a multiple of 4, at most 1024, dividing dim and hidden_dim.
        group_size: usize,
    },
}

/// Hyperparameters, in llama2.c's names. Obtained from a header, or filled in by an exporter and
/// then [`check`](Config::check)ed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward network.
    pub hidden_dim: usize,
    /// Number of transformer layers.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub seq_len: usize,
    /// The classifier is the embedding table itself.
    pub shared_classifier: bool,
    /// Storage of the matrices.
    pub weights: WeightType,
}

/// Type of the cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum KvType {
    /// 4 bytes per value.
    F32,
    /// 1 byte per value, and two f32 scales per position and layer.
    I8,
}

/// What the caller asks of a [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Limits {
    /// Positions of the KV cache, 1 to `seq_len`.
    pub max_seq: usize,
    /// Tokens per forward call: 1 on a chip, 32 or so to read prompts fast.
    pub batch: usize,
    /// Key/value heads worked on at a time: 1 on a chip, the number of threads elsewhere.
    pub threads: usize,
    /// Type of the KV cache.
    pub kv: KvType,
}

/// Sizes of the buffers that a [`State`](crate::State), a [`Sampler`](crate::Sampler) and a
/// [`Tokenizer`](crate::Tokenizer) borrow from the caller, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
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

impl Config {
    /// A model of these sizes with as many key/value heads as query heads, the embedding table as
    /// its classifier and f32 weights. The sizes are not checked: [`check`](Config::check) does that,
    /// as do [`plan`](Config::plan) and everything else that takes a `Config`.
    pub const fn new(
        dim: usize,
        hidden_dim: usize,
        n_layers: usize,
        n_heads: usize,
        vocab_size: usize,
        seq_len: usize,
    ) -> Config {
        Config {
            dim,
            hidden_dim,
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            vocab_size,
            seq_len,
            shared_classifier: true,
            weights: WeightType::F32,
        }
    }

    /// The same with another number of key/value heads.
    pub const fn with_kv_heads(mut self, n_kv_heads: usize) -> Config {
        self.n_kv_heads = n_kv_heads;
        self
    }

    /// The same with a classifier matrix of its own.
    pub const fn with_own_classifier(mut self) -> Config {
        self.shared_classifier = false;
        self
    }

    /// The same with matrices stored in this type.
    pub const fn with_weights(mut self, weights: WeightType) -> Config {
        self.weights = weights;
        self
    }

    /// Reads the header of a model file of any version; the rest of the file need not be there.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::UnknownVersion`], [`Error::Header`] or [`Error::GroupSize`].
    pub const fn from_header(bytes: &[u8]) -> Result<Config, Error> {
        match format::Header::parse(bytes) {
            Ok(header) => Ok(header.config),
            Err(e) => Err(e),
        }
    }

    /// Size of one attention head: dim / n_heads.
    pub const fn head_size(&self) -> usize {
        match self.dim.checked_div(self.n_heads) {
            Some(head_size) => head_size,
            None => 0,
        }
    }

    /// Width of keys and values: head_size · n_kv_heads.
    pub const fn kv_dim(&self) -> usize {
        self.head_size() * self.n_kv_heads
    }

    /// Query heads that share one key/value head.
    pub const fn kv_mul(&self) -> usize {
        match self.n_heads.checked_div(self.n_kv_heads) {
            Some(kv_mul) => kv_mul,
            None => 0,
        }
    }

    /// Checks the rules that every computation here relies on.
    ///
    /// # Errors
    /// [`Error::Header`] or [`Error::GroupSize`] with the offending value.
    pub const fn check(&self) -> Result<(), Error> {
        if let Err(e) = self.check_shape() {
            return Err(e);
        }
        if let WeightType::Q8 { group_size } = self.weights
            && (!group_size.is_multiple_of(4)
                || group_size > 1024
                || !divides(group_size, self.dim)
                || !divides(group_size, self.hidden_dim))
        {
            let group_size = group_size as i64;
            return Err(Error::GroupSize { group_size, dim: self.dim, hidden_dim: self.hidden_dim });
        }
        Ok(())
    }

    /// The rules of [`check`](Config::check) but that of groups.
    pub(crate) const fn check_shape(&self) -> Result<(), Error> {
        const POSITIVE: &str = "it must be at least 1 and below 2^31";
        let fields = [
            ("dim", self.dim),
            ("hidden_dim", self.hidden_dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("vocab_size", self.vocab_size),
            ("seq_len", self.seq_len),
        ];
        let mut rest: &[(&'static str, usize)] = &fields;
        while let [(field, value), tail @ ..] = rest {
            if *value == 0 || *value > i32::MAX as usize {
                return Err(header_error(field, *value, POSITIVE));
            }
            rest = tail;
        }
        if self.head_size() * self.n_heads != self.dim {
            return Err(header_error("n_heads", self.n_heads, "it must divide dim"));
        }
        if !self.head_size().is_multiple_of(2) {
            return Err(header_error("n_heads", self.n_heads, "dim / n_heads must be even for rotary embeddings"));
        }
        if self.kv_mul() * self.n_kv_heads != self.n_heads {
            return Err(header_error("n_kv_heads", self.n_kv_heads, "it must divide n_heads"));
        }
        Ok(())
    }

    /// The same model in int8, with the largest power of two up to 64 that divides dim and
    /// hidden_dim as group size.
    ///
    /// # Errors
    /// As [`check`](Config::check): [`Error::GroupSize`] when that is below 4.
    pub const fn quantized(&self) -> Result<Config, Error> {
        let mut group_size = 64;
        while group_size > 1 && !(divides(group_size, self.dim) && divides(group_size, self.hidden_dim)) {
            group_size /= 2;
        }
        let config = Config { weights: WeightType::Q8 { group_size }, ..*self };
        match config.check() {
            Ok(()) => Ok(config),
            Err(e) => Err(e),
        }
    }

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
        if let KvType::I8 = limits.kv
            && !self.head_size().is_multiple_of(4)
        {
            return Err(Error::Unsupported { what: "an int8 KV cache with a head size that is no multiple of 4" });
        }
        if let KvType::I8 = limits.kv
            && self.head_size() > MAX_HEAD_SIZE_I8
        {
            return Err(Error::Unsupported { what: "an int8 KV cache with a head size above 133,144" });
        }
        let per_token = HotSizes::new(self, limits.kv);
        // u64 throughout, so that a 32-bit chip sees the overflow instead of a small number.
        let hot_f32 = sum(&[
            product(&[limits.batch as u64, per_token.total]),
            product(&[
                min(limits.threads, self.n_kv_heads) as u64,
                self.kv_mul() as u64,
                block_len(limits.max_seq) as u64,
            ]), // att
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
            KvType::I8 => (keys, 1, product(&[2, n_layers, slots])),
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

impl Plan {
    /// Bytes of the hot buffers.
    pub const fn hot_bytes(&self) -> u64 {
        self.hot_f32 as u64 * 4 + self.hot_i8 as u64
    }

    /// Bytes of the KV cache.
    pub const fn kv_bytes(&self) -> u64 {
        let value_bytes = match self.limits.kv {
            KvType::F32 => 4,
            KvType::I8 => 1,
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

/// Largest head whose int8 scores fit an i32: products of a query and a key are at most 127².
const MAX_HEAD_SIZE_I8: usize = i32::MAX as usize / (127 * 127);
/// Bytes of a quantised activation: kernels may widen it.
pub(crate) const XQ_BYTES: usize = 2;
/// Alignment of quantised activations. The caller's buffer may lie anywhere, so the plan has room
/// to move up.
pub(crate) const XQ_ALIGN: usize = 4;

/// Elements per token of a batch: one place for [`Config::plan`] and
/// [`State::new`](crate::State::new).
pub(crate) struct HotSizes {
    /// x, xb and q each, as all that follow in f32 unless it says otherwise.
    pub dim: usize,
    /// hb and hb2 each. They also hold k and v before these go to the cache, hence the maximum.
    pub hidden: usize,
    /// cos and sin of the position's angles.
    pub rope: usize,
    /// Quantised activations, of [`XQ_BYTES`] i8 each: inputs of int8 matrices, and queries for an
    /// int8 KV cache.
    pub quantized: usize,
    /// Their scales.
    pub scales: usize,
    /// All of them in f32.
    pub total: u64,
}

impl HotSizes {
    pub const fn new(config: &Config, kv: KvType) -> HotSizes {
        let hidden = max(config.hidden_dim, config.kv_dim());
        let rope = config.head_size();
        let (queries, query_scales) = match kv {
            KvType::F32 => (0, 0),
            KvType::I8 => (config.dim, config.n_heads),
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

const fn header_error(field: &'static str, value: usize, rule: &'static str) -> Error {
    Error::Header { field, value: value as i64, rule }
}

const fn divides(divisor: usize, n: usize) -> bool {
    matches!(n.checked_rem(divisor), Some(0))
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Product of sizes, `None` on overflow.
pub(crate) const fn product(mut factors: &[u64]) -> Option<u64> {
    let mut result: u64 = 1;
    while let [factor, rest @ ..] = factors {
        result = match result.checked_mul(*factor) {
            Some(product) => product,
            None => return None,
        };
        factors = rest;
    }
    Some(result)
}

/// Sum of sizes, `None` on overflow.
pub(crate) const fn sum(mut terms: &[Option<u64>]) -> Option<u64> {
    let mut result: u64 = 0;
    while let [term, rest @ ..] = terms {
        result = match term {
            Some(term) => match result.checked_add(*term) {
                Some(sum) => sum,
                None => return None,
            },
            None => return None,
        };
        terms = rest;
    }
    Some(result)
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
        const CONFIG: Config = Config::new(64, 172, 5, 8, 512, 256);
        assert_eq!((CONFIG.dim, CONFIG.hidden_dim, CONFIG.n_layers), (64, 172, 5));
        assert_eq!((CONFIG.n_heads, CONFIG.n_kv_heads, CONFIG.vocab_size, CONFIG.seq_len), (8, 8, 512, 256));
        assert!(CONFIG.shared_classifier && CONFIG.weights == WeightType::F32);
        let weights = WeightType::Q8 { group_size: 4 };
        let other = CONFIG.with_kv_heads(4).with_own_classifier().with_weights(weights);
        assert_eq!(other, Config { n_kv_heads: 4, shared_classifier: false, weights, ..CONFIG });

        const LIMITS: Limits = Limits::new(7);
        assert_eq!(LIMITS, Limits { max_seq: 7, batch: 1, threads: 1, kv: KvType::F32 });
        let other = LIMITS.with_batch(2).with_threads(3).with_kv(KvType::I8);
        assert_eq!(other, Limits { max_seq: 7, batch: 2, threads: 3, kv: KvType::I8 });
    }
}
