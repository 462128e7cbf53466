//! Where a step's numbers are in memory.

use infer_core::Config;
use infer_core::format::TensorName;

use crate::io::tensors::Shape;
use crate::model::precision::Dtype;

/// Most logits in memory.
const MOST_LOGITS: usize = 1 << 26;
/// Most parts that the gradient of a norm's weight is summed in.
const MOST_PARTS: usize = 64;
/// Arrays have room for a multiple of so many numbers: they begin at multiples of 128 bytes.
const ALIGNMENT: usize = 64;

/// The size of a step.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub config: Config,
    pub sequences: usize,
    pub length: usize,
    /// With what backward needs.
    pub keep: bool,
    /// With a teacher's logits.
    pub teacher: bool,
    /// With several texts in a window.
    pub texts: bool,
    pub dtype: Dtype,
    /// Backward computes each layer's activations again.
    pub recompute: bool,
}

impl Sizes {
    pub fn positions(&self) -> usize {
        self.sequences * self.length
    }

    /// Columns of qkv: queries, keys, values.
    pub fn qkv(&self) -> usize {
        self.config.dim + 2 * self.config.kv_dim()
    }

    /// Rows of logits that are in memory together.
    pub fn rows(&self) -> usize {
        (MOST_LOGITS / self.config.vocab_size).clamp(1, self.positions())
    }

    /// Parts that the gradient of a norm's weight is summed in.
    pub fn parts(&self) -> usize {
        self.positions().div_ceil(32).min(MOST_PARTS)
    }
}

/// Addresses of a layer's activations. Those in f32 are marked; the others have the step's format.
#[derive(Clone, Copy)]
pub struct Activations {
    pub x: u64,           // (positions, dim), f32: the layer's input
    pub xb: u64,          // (positions, dim): its norm
    pub inverse_att: u64, // (positions), f32
    pub qkv: u64,         // (positions, qkv), rotated
    pub att: u64,         // (positions, dim)
    pub lse: u64,         // (sequences, n_heads, length), f32
    pub x2: u64,          // (positions, dim), f32: input of the feed-forward half
    pub xb2: u64,         // (positions, dim): its norm
    pub inverse_ffn: u64, // (positions), f32
    pub h13: u64,         // (positions, 2 * hidden_dim): h1 and h3 side by side
}

/// Addresses of everything but weights and gradients.
pub struct Layout {
    pub layers: Vec<Activations>,
    /// Input of the last norm (f32), its norm, and the inverse of its root mean square (f32).
    pub x: u64,
    pub xb: u64,
    pub inverse: u64,
    pub hb: u64, // (positions, hidden_dim), and its gradient
    pub y: u64,  // (positions, dim): what is added to x, and gradients
    pub tokens: u64,
    pub targets: u64,
    pub texts: u64,  // (positions): where the text of each begins
    pub cos: u64,    // (length, head_size / 2), f32
    pub sin: u64,    // f32
    pub logits: u64, // (rows, vocab_size)
    pub taught: u64, // (rows, vocab_size), f32: the teacher's logits
    pub losses: u64, // (positions), f32
    /// Of backward.
    pub dx: u64, // (positions, dim), f32
    pub d_xb: u64,   // (positions, dim)
    pub d_qkv: u64,  // (positions, qkv)
    pub delta: u64,  // (sequences, n_heads, length), f32
    pub parts: u64,  // (parts, dim), f32
    pub order: u64,  // (positions), and starts (at most positions + 1)
    pub starts: u64,
    /// Words in all.
    pub words: usize,
    #[cfg(test)]
    pub gaps: Vec<(u64, usize)>,
}

/// Gives out addresses, one array behind the other.
struct Places {
    base: u64,
    words: usize,
    dtype: Dtype,
    /// Addresses and bytes between arrays, which no kernel may touch.
    #[cfg(test)]
    gaps: Vec<(u64, usize)>,
}

impl Places {
    fn new(base: u64, dtype: Dtype) -> Places {
        Places {
            base,
            words: 0,
            dtype,
            #[cfg(test)]
            gaps: Vec::new(),
        }
    }

    /// The address of so many words of 4 bytes.
    fn words(&mut self, n: usize) -> u64 {
        self.place(n, 4)
    }

    /// The address of so many numbers in the step's format.
    fn reals(&mut self, n: usize) -> u64 {
        self.place(n, self.dtype.bytes())
    }

    /// The address of n numbers of so many bytes each.
    fn place(&mut self, n: usize, bytes: usize) -> u64 {
        let (address, room) = (self.base + 4 * self.words as u64, n.next_multiple_of(ALIGNMENT));
        self.words += room * bytes / 4;
        #[cfg(test)]
        self.gaps.push((address + (n * bytes) as u64, (room - n) * bytes));
        address
    }
}

impl Layout {
    /// The layout from this address on.
    pub fn new(sizes: &Sizes, base: u64) -> Layout {
        let Sizes { config: c, keep, .. } = *sizes;
        let (n, hidden, heads) = (sizes.positions(), c.hidden_dim, c.n_heads);
        let (dim, half) = (n * c.dim, sizes.length * c.head_size() / 2);
        let mut places = Places::new(base, sizes.dtype);
        let layers = Layout::layers(sizes, &mut places);
        let (logits, kept) = (sizes.rows() * c.vocab_size, usize::from(keep));
        Layout {
            layers,
            x: places.words(dim),
            xb: places.reals(dim),
            inverse: places.words(n),
            hb: places.reals(n * hidden),
            y: places.reals(dim),
            tokens: places.words(n),
            targets: places.words(n),
            texts: places.words(n),
            cos: places.words(half),
            sin: places.words(half),
            logits: places.reals(logits),
            taught: places.words(if sizes.teacher { logits } else { 0 }),
            losses: places.words(n),
            dx: places.words(kept * dim),
            d_xb: places.reals(kept * dim),
            d_qkv: places.reals(kept * n * sizes.qkv()),
            delta: places.words(kept * n * heads),
            parts: places.words(kept * sizes.parts() * c.dim),
            order: places.words(kept * n),
            starts: places.words(kept * (n + 1)),
            words: places.words,
            #[cfg(test)]
            gaps: places.gaps,
        }
    }

    /// Without backward all layers use the same memory: each reads its input before it writes. With
    /// activations that are computed again each has an input of its own.
    fn layers(sizes: &Sizes, places: &mut Places) -> Vec<Activations> {
        let Sizes { config: c, keep, recompute, .. } = *sizes;
        let n = sizes.positions();
        let layer = |places: &mut Places| Activations {
            x: places.words(n * c.dim),
            xb: places.reals(n * c.dim),
            inverse_att: places.words(n),
            qkv: places.reals(n * sizes.qkv()),
            att: places.reals(n * c.dim),
            lse: places.words(n * c.n_heads),
            x2: places.words(n * c.dim),
            xb2: places.reals(n * c.dim),
            inverse_ffn: places.words(n),
            h13: places.reals(n * 2 * c.hidden_dim),
        };
        if keep && !recompute {
            return (0..c.n_layers).map(|_| layer(places)).collect();
        }
        let shared = layer(places);
        let mut input = |i| if keep && i > 0 { places.words(n * c.dim) } else { shared.x };
        (0..c.n_layers).map(|i| Activations { x: input(i), ..shared }).collect()
    }
}

/// Addresses of a layer's parameters, or of their gradients.
#[derive(Clone, Copy)]
pub struct LayerParameters {
    pub rms_att: u64,
    pub wqkv: u64, // (qkv, dim): wq, wk and wv, one below the other
    pub wo: u64,
    pub rms_ffn: u64,
    pub w13: u64, // (2 * hidden_dim, dim): w1 and w3
    pub w2: u64,
}

/// Addresses of all weights, or of a number for each. They are one array in f32, the norms' weights
/// first; the numbers between its parts are 0. Where products take 16 bits, the addresses of
/// matrices are those of copies, which have the same order.
pub struct Parameters {
    pub tok_emb: u64,
    pub layers: Vec<LayerParameters>,
    pub rms_final: u64,
    pub wcls: u64,
    /// The array, and how many numbers of norms and of matrices it has.
    pub all: u64,
    pub norms: usize,
    pub matrices: usize,
    /// The copies of the matrices, 0 if there are none, and their format.
    pub copies: u64,
    pub dtype: Dtype,
    config: Config,
    #[cfg(test)]
    pub gaps: Vec<(u64, usize)>,
}

impl Parameters {
    /// The array at an address.
    pub fn new(config: &Config, all: u64) -> Parameters {
        Parameters::place(config, all, None)
    }

    /// The same array, and copies of its matrices in a format of 16 bits.
    pub fn with_copies(&self, copies: u64, dtype: Dtype) -> Parameters {
        Parameters::place(&self.config, self.all, Some((copies, dtype)))
    }

    fn place(config: &Config, all: u64, copies: Option<(u64, Dtype)>) -> Parameters {
        let Config { dim, hidden_dim, vocab_size, n_layers, .. } = *config;
        let mut places = Places::new(all, Dtype::Float32);
        let norms: Vec<_> = (0..n_layers).map(|_| [places.words(dim), places.words(dim)]).collect();
        let rms_final = places.words(dim);
        let (base, dtype) = copies.unwrap_or((all + 4 * places.words as u64, Dtype::Float32));
        let mut matrices = Places::new(base, dtype);
        let tok_emb = matrices.reals(vocab_size * dim);
        let layer = |[rms_att, rms_ffn]: [u64; 2]| LayerParameters {
            rms_att,
            wqkv: matrices.reals((dim + 2 * config.kv_dim()) * dim),
            wo: matrices.reals(dim * dim),
            rms_ffn,
            w13: matrices.reals(2 * hidden_dim * dim),
            w2: matrices.reals(dim * hidden_dim),
        };
        Parameters {
            tok_emb,
            layers: norms.into_iter().map(layer).collect(),
            rms_final,
            wcls: if config.shared_classifier { tok_emb } else { matrices.reals(vocab_size * dim) },
            all,
            norms: places.words,
            matrices: 4 * matrices.words / dtype.bytes(),
            copies: copies.map_or(0, |(address, _)| address),
            dtype,
            config: *config,
            #[cfg(test)]
            gaps: [places.gaps, matrices.gaps].concat(),
        }
    }

    /// Numbers of the array.
    pub fn numbers(&self) -> usize {
        self.norms + self.matrices
    }

    /// The address of a parameter.
    pub fn address(&self, shape: &Shape) -> u64 {
        let layer = &self.layers[shape.layer.min(self.layers.len() - 1)];
        let below = |address, rows| address + (rows * self.config.dim * self.dtype.bytes()) as u64;
        match shape.name {
            TensorName::TokEmb => self.tok_emb,
            TensorName::RmsAtt => layer.rms_att,
            TensorName::Wq => layer.wqkv,
            TensorName::Wk => below(layer.wqkv, self.config.dim),
            TensorName::Wv => below(layer.wqkv, self.config.dim + self.config.kv_dim()),
            TensorName::Wo => layer.wo,
            TensorName::RmsFfn => layer.rms_ffn,
            TensorName::W1 => layer.w13,
            TensorName::W2 => layer.w2,
            TensorName::W3 => below(layer.w13, self.config.hidden_dim),
            TensorName::RmsFinal => self.rms_final,
            TensorName::Wcls => self.wcls,
            TensorName::FreqCisReal | TensorName::FreqCisImag => unreachable!("no parameters"),
        }
    }
}
