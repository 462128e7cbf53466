//! Seeded random models of any shape, as files of any version.

use infer_core::format::{Header, Tensor, TensorName, Version, write};
use infer_core::{Config, ModelBytes, WeightType};

/// A configuration with shared classifier and f32 weights.
pub fn config(dim: usize, hidden_dim: usize, n_layers: usize, n_heads: usize, n_kv_heads: usize) -> Config {
    let (vocab_size, seq_len) = (300, 40);
    Config::new(dim, hidden_dim, n_layers, n_heads, vocab_size, seq_len).with_kv_heads(n_kv_heads)
}

/// Shapes that real models do not have and the format allows.
pub fn odd_shapes() -> Vec<Config> {
    let unshared = Config::with_own_classifier;
    vec![
        config(2, 3, 1, 1, 1),              // the smallest: head size 2
        unshared(config(8, 5, 2, 4, 2)),    // head size 2, grouped queries, dim below a vector
        config(12, 20, 2, 3, 1),            // head size 4, three queries share one key
        unshared(config(30, 7, 3, 3, 3)),   // head size 10, nothing a multiple of 4
        config(36, 36, 1, 2, 1),            // head size 18
        unshared(config(48, 31, 2, 6, 2)),  // head size 8, odd hidden_dim
        config(64, 172, 5, 8, 4),           // stories260K
        config(256, 100, 2, 2, 1),          // head size 128, hidden_dim below kv_dim
        unshared(config(128, 96, 1, 1, 1)), // one layer, one head of 128
    ]
}

/// Shapes for int8: group sizes from 4 to 1024, with fewer groups in a row than a vector has lanes,
/// and more.
pub fn int8_shapes() -> Vec<Config> {
    let q8 = |group_size: usize, config: Config| config.with_weights(WeightType::Q8 { group_size });
    let unshared = Config::with_own_classifier;
    vec![
        q8(4, config(8, 12, 1, 2, 1)),
        q8(8, unshared(config(24, 40, 2, 3, 1))),
        q8(16, config(48, 32, 2, 6, 2)),
        q8(32, config(288, 96, 1, 6, 6)),           // nine groups in a row, as 15M
        q8(32, unshared(config(64, 352, 2, 8, 4))), // eleven
        q8(64, config(64, 192, 5, 8, 4)),           // one, and three: 260K
        q8(1024, config(1024, 1024, 1, 8, 2)),
    ]
}

/// A model's weights by tensor, layers one behind the other.
pub struct RandomModel {
    /// Its shape.
    pub config: Config,
    tensors: Vec<(TensorName, Vec<f32>)>,
}

impl RandomModel {
    /// Draws weights so that activations stay near 1 through all layers.
    ///
    /// # Panics
    /// When the configuration breaks a rule.
    pub fn new(config: Config, seed: u64) -> RandomModel {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config_v0 = config.with_weights(WeightType::F32);
        let layout = Header::new(Version::V0, config_v0).layout().unwrap();
        let tensors = layout
            .iter()
            .map(|Tensor { name, count, rows, cols, .. }| {
                let mut uniform = |low: f32, high: f32| low + (high - low) * rng.f32();
                let bound = (3.0 / cols as f32).sqrt();
                let weight = |_| match name {
                    TensorName::RmsAtt | TensorName::RmsFfn | TensorName::RmsFinal => uniform(0.5, 1.5),
                    TensorName::FreqCisReal | TensorName::FreqCisImag => f32::NAN, // must not be read
                    TensorName::TokEmb => uniform(-1.7, 1.7),
                    _ => uniform(-bound, bound),
                };
                (name, (0..count * rows * cols).map(weight).collect())
            })
            .collect();
        RandomModel { config, tensors }
    }

    /// The weights of a tensor, to be changed.
    ///
    /// # Panics
    /// When the model has no such tensor.
    pub fn tensor_mut(&mut self, name: TensorName) -> &mut Vec<f32> {
        &mut self.tensors.iter_mut().find(|(n, _)| *n == name).unwrap().1
    }

    /// The model as a file. Version 2 quantises, with the group size of the model's configuration.
    ///
    /// # Panics
    /// When the configuration does not fit the version.
    pub fn to_file(&self, version: Version) -> File {
        let header = Header::new(version, self.config);
        let layout = header.layout().unwrap();
        let tensor = |name| &self.tensors.iter().find(|(n, _)| *n == name).unwrap().1;
        let mut bytes = Vec::new();
        write(&mut bytes, &header, |name, layer| {
            let stack = tensor(name);
            let n = stack.len() / layout.get(name).unwrap().count;
            Ok(stack[layer * n..][..n].iter().map(|w| if w.is_finite() { *w } else { 0.0 }).collect())
        })
        .unwrap();
        // Damage, which no writer writes, is put in afterwards.
        for Tensor { name, offset, .. } in layout.iter() {
            for (i, w) in tensor(name).iter().enumerate().filter(|(_, w)| !w.is_finite()) {
                assert_ne!(version, Version::V2, "a damaged f32 weight has no place among int8 ones");
                bytes[offset as usize + 4 * i..][..4].copy_from_slice(&w.to_le_bytes());
            }
        }
        File::new(&bytes)
    }
}

/// The bytes of a file at an aligned address.
pub struct File(ModelBytes);

impl File {
    /// Copies the bytes.
    ///
    /// # Panics
    /// When there is no memory for them.
    pub fn new(bytes: &[u8]) -> File {
        File(ModelBytes::copy(bytes).unwrap())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}
