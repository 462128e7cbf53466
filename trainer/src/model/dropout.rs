//! The choice of dropped activations. It is a hash of seed, place and index, so that forward,
//! backward and the composed model agree without masks in memory, whatever the order of
//! computation.

/// Dropout at one place of the model, such as a layer's attention weights. Rows and columns are
/// those of the matrix there.
#[derive(Clone, Copy)]
pub(super) struct Dropout {
    pub seed: u64,
    /// Elements with a hash below this are dropped.
    pub threshold: u32,
    /// Factor of the elements that are kept: 1 / (1 - p).
    pub scale: f32,
}

/// A place where activations are dropped.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Embedding,
    Attention,
    AttentionOut,
    FfnOut,
}

impl Dropout {
    /// Multipliers of the hash: the finaliser of MurmurHash3 (Appleby), 32-bit operations only, so
    /// that it vectorises.
    pub const MIX: [u32; 2] = [0x85EB_CA6B, 0xC2B2_AE35];

    /// Returns `None` if nothing is dropped.
    pub fn new(p: f32, seed: u64, place: Place, layer: usize) -> Option<Dropout> {
        let seed = mix(seed ^ mix((layer as u64) << 2 | place as u64));
        let threshold = (f64::from(p) * 2f64.powi(32)) as u32;
        (p > 0.0).then(|| Dropout { seed, threshold, scale: 1.0 / (1.0 - p) })
    }

    /// Computes a row's part of the hash.
    pub fn row(&self, row: usize) -> u32 {
        mix(self.seed ^ row as u64) as u32
    }

    /// Computes a column's part of the hash.
    pub const fn col(col: usize) -> u32 {
        (col as u32).wrapping_mul(0x9E37_79B9)
    }

    /// Computes the factor of an element, 0 or `scale`, from its row's part of the hash.
    pub fn factor(&self, row: u32, col: usize) -> f32 {
        let mut h = row ^ Dropout::col(col);
        h = (h ^ (h >> 16)).wrapping_mul(Dropout::MIX[0]);
        h = (h ^ (h >> 13)).wrapping_mul(Dropout::MIX[1]);
        h ^= h >> 16;
        if h < self.threshold { 0.0 } else { self.scale }
    }

    /// Drops elements of neighbouring rows; `first` is the number of the first.
    pub fn apply(&self, x: &mut [f32], cols: usize, first: usize) {
        for (i, row) in x.chunks_exact_mut(cols).enumerate() {
            let key = self.row(first + i);
            row.iter_mut().enumerate().for_each(|(col, x)| *x *= self.factor(key, col));
        }
    }

    /// Computes the factors of a whole matrix.
    pub fn mask(&self, rows: usize, cols: usize) -> Vec<f32> {
        (0..rows)
            .flat_map(|row| {
                let key = self.row(row);
                (0..cols).map(move |col| self.factor(key, col))
            })
            .collect()
    }
}

/// The output function of SplitMix64 (Steele et al. 2014).
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
