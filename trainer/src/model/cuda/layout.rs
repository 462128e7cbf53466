//! Where a step's numbers are in memory.

use infer_core::Config;
use infer_core::format::TensorName;

use crate::io::tensors::Shape;

/// Most logits in memory.
const MOST_LOGITS: usize = 1 << 26;
/// Most parts that the gradient of a norm's weight is summed in.
const MOST_PARTS: usize = 64;
/// Buffers begin at multiples of so many words.
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

/// Addresses of a layer's activations.
#[derive(Clone, Copy)]
pub struct Activations {
    pub x: u64,           // (positions, dim): the layer's input
    pub xb: u64,          // (positions, dim): its norm
    pub inverse_att: u64, // (positions)
    pub qkv: u64,         // (positions, qkv), rotated
    pub att: u64,         // (positions, dim)
    pub lse: u64,         // (sequences, n_heads, length)
    pub x2: u64,          // (positions, dim): input of the feed-forward half
    pub xb2: u64,         // (positions, dim): its norm
    pub inverse_ffn: u64, // (positions)
    pub h1: u64,          // (positions, hidden_dim)
    pub h3: u64,          // (positions, hidden_dim)
}

/// Addresses of everything but weights and gradients.
pub struct Layout {
    pub layers: Vec<Activations>,
    /// Input of the last norm, its norm, and the inverse of its root mean square.
    pub x: u64,
    pub xb: u64,
    pub inverse: u64,
    pub hb: u64, // (positions, hidden_dim), and its gradient
    pub y: u64,  // (positions, dim): what is added to x, and gradients
    pub tokens: u64,
    pub targets: u64,
    pub texts: u64, // (positions): where the text of each begins
    pub cos: u64,   // (length, head_size / 2)
    pub sin: u64,
    pub logits: u64, // (rows, vocab_size)
    pub taught: u64, // (rows, vocab_size)
    pub losses: u64, // (positions)
    /// Of backward.
    pub dx: u64, // (positions, dim)
    pub d_xb: u64,   // (positions, dim)
    pub d_qkv: u64,  // (positions, qkv)
    pub delta: u64,  // (sequences, n_heads, length)
    pub parts: u64,  // (parts, dim)
    pub order: u64,  // (positions), and starts (at most positions + 1)
    pub starts: u64,
    /// Words in all.
    pub words: usize,
}

impl Layout {
    /// The layout from this address on.
    pub fn new(sizes: &Sizes, base: u64) -> Layout {
        let Sizes { config: c, keep, .. } = *sizes;
        let (n, hidden, heads) = (sizes.positions(), c.hidden_dim, c.n_heads);
        let (dim, half) = (n * c.dim, sizes.length * c.head_size() / 2);
        let mut words = 0;
        let mut take = |n: usize| {
            let address = base + 4 * words as u64;
            words += n.next_multiple_of(ALIGNMENT);
            address
        };
        let mut layer = || Activations {
            x: take(dim),
            xb: take(dim),
            inverse_att: take(n),
            qkv: take(n * sizes.qkv()),
            att: take(dim),
            lse: take(n * heads),
            x2: take(dim),
            xb2: take(dim),
            inverse_ffn: take(n),
            h1: take(n * hidden),
            h3: take(n * hidden),
        };
        // Without backward all layers use the same memory: each reads its input before it writes.
        let layers = if keep { (0..c.n_layers).map(|_| layer()).collect() } else { vec![layer(); c.n_layers] };
        let logits = sizes.rows() * c.vocab_size;
        let mut backward = |n: usize| if keep { take(n) } else { 0 };
        let (dx, d_xb, d_qkv) = (backward(dim), backward(dim), backward(n * sizes.qkv()));
        let (delta, parts) = (backward(n * heads), backward(sizes.parts() * c.dim));
        let (order, starts) = (backward(n), backward(n + 1));
        Layout {
            layers,
            x: take(dim),
            xb: take(dim),
            inverse: take(n),
            hb: take(n * hidden),
            y: take(dim),
            tokens: take(n),
            targets: take(n),
            texts: take(n),
            cos: take(half),
            sin: take(half),
            logits: take(logits),
            taught: take(if sizes.teacher { logits } else { 0 }),
            losses: take(n),
            dx,
            d_xb,
            d_qkv,
            delta,
            parts,
            order,
            starts,
            words,
        }
    }
}

/// Addresses of a layer's parameters, or of their gradients.
#[derive(Clone, Copy)]
pub struct LayerParameters {
    pub rms_att: u64,
    pub wq: u64,
    pub wk: u64,
    pub wv: u64,
    pub wo: u64,
    pub rms_ffn: u64,
    pub w1: u64,
    pub w2: u64,
    pub w3: u64,
}

/// Addresses of the parameters, or of their gradients.
pub struct Parameters {
    pub tok_emb: u64,
    pub layers: Vec<LayerParameters>,
    pub rms_final: u64,
    pub wcls: u64,
}

impl Parameters {
    /// Names the addresses, which are in the order of the shapes.
    pub fn new(config: &Config, shapes: &[Shape], addresses: &[u64]) -> Parameters {
        let find = |name, layer| {
            let at = shapes.iter().position(|s| s.name == name && s.layer == layer);
            addresses[at.expect("every tensor of shapes() is there")]
        };
        let layer = |l| LayerParameters {
            rms_att: find(TensorName::RmsAtt, l),
            wq: find(TensorName::Wq, l),
            wk: find(TensorName::Wk, l),
            wv: find(TensorName::Wv, l),
            wo: find(TensorName::Wo, l),
            rms_ffn: find(TensorName::RmsFfn, l),
            w1: find(TensorName::W1, l),
            w2: find(TensorName::W2, l),
            w3: find(TensorName::W3, l),
        };
        let classifier = if config.shared_classifier { TensorName::TokEmb } else { TensorName::Wcls };
        Parameters {
            tok_emb: find(TensorName::TokEmb, 0),
            layers: (0..config.n_layers).map(layer).collect(),
            rms_final: find(TensorName::RmsFinal, 0),
            wcls: find(classifier, 0),
        }
    }
}
