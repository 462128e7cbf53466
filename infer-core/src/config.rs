//! Hyperparameters of a model, and the rules that they keep.
//!
//! Everything here is `const`, so that firmware sizes its statics from `include_bytes!` at compile
//! time. Const code has no `?` and no `for`, hence the plain style.

use crate::error::Error;
use crate::rope::{Rope, setting};

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
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
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
    /// The angles by which positions turn queries and keys.
    pub rope: Rope,
    /// Added to the mean square in rmsnorm.
    pub norm_eps: f32,
}

impl Config {
    /// Llama 2's `norm_eps`, and that of every plain llama2.c file.
    pub(crate) const NORM_EPS: f32 = 1e-5;

    /// A model of these sizes with as many key/value heads as query heads, the embedding table as
    /// its classifier, f32 weights, and Llama 2's rotary embeddings and norms. The sizes are not
    /// checked: [`check`](Config::check) does that, as do [`plan`](Config::plan) and everything
    /// else that takes a `Config`.
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
            rope: Rope::LLAMA2,
            norm_eps: Config::NORM_EPS,
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

    /// The same with other rotary embeddings.
    pub const fn with_rope(mut self, rope: Rope) -> Config {
        self.rope = rope;
        self
    }

    /// The same with another number under the root of rmsnorm.
    pub const fn with_norm_eps(mut self, norm_eps: f32) -> Config {
        self.norm_eps = norm_eps;
        self
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
    /// [`Error::Header`], [`Error::Setting`] or [`Error::GroupSize`] with the offending value.
    pub const fn check(&self) -> Result<(), Error> {
        if let Err(e) = self.check_shape() {
            return Err(e);
        }
        if let Err(e) = self.rope.check() {
            return Err(e);
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return setting("norm_eps", self.norm_eps, "it must be above 0 and below 1");
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
}

const fn header_error(field: &'static str, value: usize, rule: &'static str) -> Error {
    Error::Header { field, value: value as i64, rule }
}

const fn divides(divisor: usize, n: usize) -> bool {
    matches!(n.checked_rem(divisor), Some(0))
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
        let (rope, norm_eps) = (Rope::new(5e5), 1e-6);
        assert_eq!(CONFIG.with_rope(rope).with_norm_eps(norm_eps), Config { rope, norm_eps, ..CONFIG });
        assert!(CONFIG.with_norm_eps(f32::NAN).check().is_err() && CONFIG.with_norm_eps(0.0).check().is_err());
    }
}
