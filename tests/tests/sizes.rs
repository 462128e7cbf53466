//! Models of 7 and 13 billion weights: places beyond 32 bits, in the table of tensors and in the
//! computation. The weights are zeros that take neither memory nor disk, except for a few.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use infer_core::format::{Header, TensorName, Version};
use infer_core::{Config, Engine, Kernels, Limits, MappedModel, ModelBytes, Pool, WeightType, default_threads};
use tests::Run;
use tests::shared::skip;
use tests::tolerance::{RANDOM_F32_LOGITS, check};

const INT8: WeightType = WeightType::Q8 { group_size: 64 };
const LLAMA_7B: Config = Config::new(4096, 11008, 32, 32, 32000, 4096).with_own_classifier();
const LLAMA_13B: Config = Config::new(5120, 13824, 40, 40, 32000, 4096).with_own_classifier();
const LLAMA_70B: Config = Config::new(8192, 28672, 80, 64, 32000, 4096).with_kv_heads(8).with_own_classifier();

fn header(version: Version, config: Config) -> Header {
    let config = if version == Version::V2 { config.with_weights(INT8) } else { config };
    Header::new(version, config)
}

/// Sums of the sizes in docs/FORMAT.md, worked out by hand: the ends of the files, and the places
/// where tensors begin.
#[test]
fn large_models_lie_where_the_format_says() {
    use TensorName::{W1, W2, W3, Wcls, Wo};
    for (version, config, end, places) in [
        (Version::V0, LLAMA_7B, 26955759644, [6967263260, 9115271196, 14886633500, 20657995804, 26431471644]),
        (Version::V1, LLAMA_7B, 26953662720, [6967804160, 9115287808, 14886650112, 20658012416, 26429374720]),
        (Version::V2, LLAMA_7B, 7160348928, [1851605248, 2422030592, 3955048704, 5488066816, 7021084928]),
        (Version::V0, LLAMA_13B, 52065554460, [13239091228, 17434214428, 28758835228, 40083456028, 51410194460]),
        (Version::V1, LLAMA_13B, 52063457536, [13239931136, 17434235136, 28758855936, 40083476736, 51408097536]),
        (Version::V2, LLAMA_13B, 13830574336, [3518075136, 4632187136, 7640289536, 10648391936, 13656494336]),
        (Version::V1, LLAMA_70B, 275906593024, [27897397504, 49372233984, 124534161664, 199696089344, 274858017024]),
        (Version::V2, LLAMA_70B, 73291563264, [7414120704, 13118374144, 33083261184, 53048148224, 73013035264]),
    ] {
        let layout = header(version, config).layout().unwrap();
        assert_eq!(layout.file_bytes, end, "{version:?} {}", config.dim);
        for (name, offset) in [Wo, W1, W2, W3, Wcls].into_iter().zip(places) {
            assert_eq!(layout.get(name).unwrap().offset, offset, "{version:?} {} {name:?}", config.dim);
        }
    }
}

/// 7.2 GB.
#[test]
fn int8_weights_beyond_4_gb_reach_the_logits() {
    compute_in_memory(header(Version::V2, LLAMA_7B));
}

/// 5.9 GB.
#[test]
fn f32_weights_beyond_4_gb_reach_the_logits() {
    let Config { dim, hidden_dim, n_heads, vocab_size, seq_len, .. } = LLAMA_7B;
    let shape = Config::new(dim, hidden_dim, 6, n_heads, vocab_size, seq_len).with_own_classifier();
    compute_in_memory(header(Version::V1, shape));
}

/// 27 GB, of which the disk holds a few pages, and the page cache what it has room for.
#[test]
#[ignore = "reads 27 GB of holes in a file, in 20 s and more"]
#[allow(unsafe_code)]
fn a_mapped_7b_model_reaches_the_logits() {
    let planted = Planted::new(header(Version::V0, LLAMA_7B));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted7b.bin");
    let mut file = File::create(&path).unwrap();
    file.set_len(planted.header.layout().unwrap().file_bytes).unwrap();
    planted.write(|offset, bytes| {
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(bytes).unwrap();
    });
    // SAFETY: the folder is that of this test program, and nothing else in it writes to the file.
    let map = unsafe { MappedModel::open(&path) }.unwrap();
    std::fs::remove_file(path).unwrap();
    planted.check(map.bytes());
}

fn compute_in_memory(header: Header) {
    let planted = Planted::new(header);
    let len = header.layout().unwrap().file_bytes as usize;
    // Zeros that are only read share one page of memory.
    let Ok(mut file) = ModelBytes::zeros(len) else { return skip("the system does not lend so much memory") };
    planted.write(|offset, bytes| file.bytes_mut()[offset as usize..][..bytes.len()].copy_from_slice(bytes));
    planted.check(file.bytes());
}

/// A model whose weights are 0 except for those at the beginning, in the middle and at the end of
/// each matrix of the first layer, a middle one and the last one.
struct Planted {
    header: Header,
    weights: Vec<Weight>,
}

/// A weight, `q` times `scale`. `scale` is 1 in an f32 tensor.
struct Weight {
    name: TensorName,
    layer: usize,
    row: usize,
    col: usize,
    q: f32,
    scale: f32,
}

/// The first place, one in the middle, and the last one.
fn three(n: usize) -> [usize; 3] {
    [0, n / 2, n - 1]
}

impl Planted {
    fn new(header: Header) -> Planted {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut weights = Vec::new();
        for tensor in header.layout().unwrap().iter() {
            let mut plant = |layer, row, col| {
                let w = match tensor.name {
                    TensorName::FreqCisReal | TensorName::FreqCisImag => return,
                    // Few of many dimensions are not 0: the norm makes these as large as its
                    // weight makes them small.
                    TensorName::RmsAtt | TensorName::RmsFfn | TensorName::RmsFinal => {
                        (0.5 + rng.f32()) * (3.0 / tensor.cols as f32).sqrt()
                    }
                    _ => 2.0 * rng.f32() - 1.0,
                };
                let (q, scale) = match tensor.weights {
                    WeightType::F32 => (w, 1.0),
                    WeightType::Q8 { .. } => ((127.0 * w).round(), 1.0 / 127.0),
                };
                weights.push(Weight { name: tensor.name, layer, row, col, q, scale });
            };
            let layers = if tensor.count == 1 { vec![0] } else { three(tensor.count).to_vec() };
            let rows = if tensor.rows == 1 { vec![0] } else { three(tensor.rows).to_vec() };
            for layer in layers {
                for &row in &rows {
                    three(tensor.cols).into_iter().for_each(|col| plant(layer, row, col));
                }
            }
        }
        Planted { header, weights }
    }

    /// Writes what is not 0 of the file, as (offset, bytes).
    fn write(&self, mut put: impl FnMut(u64, &[u8])) {
        put(0, &self.header.to_bytes().unwrap()[..self.header.size()]);
        let layout = self.header.layout().unwrap();
        for &Weight { name, layer, row, col, q, scale } in &self.weights {
            let tensor = layout.get(name).unwrap();
            let start = tensor.offset + layer as u64 * tensor.stride;
            let (index, all) = ((row * tensor.cols + col) as u64, (tensor.rows * tensor.cols) as u64);
            match tensor.weights {
                WeightType::F32 => put(start + 4 * index, &q.to_le_bytes()),
                WeightType::Q8 { group_size } => {
                    put(start + index, &(q as i8).to_le_bytes());
                    put(start + all + 4 * (index / group_size as u64), &scale.to_le_bytes());
                }
            }
        }
    }

    /// Compares the logits of infer-core behind three tokens, two of them read at once, with those
    /// of the planted weights alone.
    fn check(&self, file: &[u8]) {
        let pool = Pool::new(default_threads()).unwrap();
        let limits = Limits::new(3).with_batch(2).with_threads(pool.threads().get());
        let mut run = Run::with_limits(file, limits, Engine::new(Kernels::detect(), &pool));
        let [a, b, c] = three(self.header.config.vocab_size).map(|token| token as u32);
        let tokens = [b, c, a];
        let want = self.logits(&tokens);
        for (got, want) in run.logits(&tokens).unwrap().iter().zip(want) {
            assert!(want.iter().filter(|x| x.abs() > 1e-2).count() == 3, "the planted weights reach the logits");
            check(got, &want, RANDOM_F32_LOGITS).unwrap();
        }
    }

    /// The weights of a matrix that are not 0, as (row, col, weight).
    fn matrix(&self, name: TensorName, layer: usize) -> impl Iterator<Item = (usize, usize, f64)> {
        let weights = self.weights.iter().filter(move |w| w.name == name && w.layer == layer);
        weights.map(|w| (w.row, w.col, f64::from(w.q) * f64::from(w.scale)))
    }

    fn matvec(&self, name: TensorName, layer: usize, x: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.header.layout().unwrap().get(name).unwrap().rows];
        self.matrix(name, layer).for_each(|(row, col, w)| out[row] += w * x[col]);
        out
    }

    fn rmsnorm(&self, name: TensorName, layer: usize, x: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; x.len()];
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        self.matrix(name, layer).for_each(|(_, i, w)| out[i] = x[i] / (mean_square + 1e-5).sqrt() * w);
        out
    }

    /// Logits in float64 after each of the tokens.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        use TensorName::*;
        let Config { n_heads, n_layers, .. } = self.header.config;
        let head_size = self.header.config.head_size();
        let (mut keys, mut values) = (vec![Vec::new(); n_layers], vec![Vec::new(); n_layers]);
        let mut all = Vec::new();
        for (pos, &token) in tokens.iter().enumerate() {
            let mut x = vec![0.0; self.header.config.dim];
            let embedding = self.matrix(TokEmb, 0).filter(|&(row, ..)| row == token as usize);
            embedding.for_each(|(_, col, w)| x[col] = w);
            for layer in 0..n_layers {
                let y = self.rmsnorm(RmsAtt, layer, &x);
                let q = rope(self.matvec(Wq, layer, &y), pos, head_size);
                keys[layer].push(rope(self.matvec(Wk, layer, &y), pos, head_size));
                values[layer].push(self.matvec(Wv, layer, &y));
                let mut y = vec![0.0; x.len()];
                for head in 0..n_heads {
                    let part = head * head_size..(head + 1) * head_size; // of as many key heads
                    let score = |k: &Vec<f64>| {
                        let dot: f64 = q[part.clone()].iter().zip(&k[part.clone()]).map(|(q, k)| q * k).sum();
                        (dot / (head_size as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = keys[layer].iter().map(score).collect();
                    let total: f64 = scores.iter().sum();
                    for (score, value) in scores.iter().zip(&values[layer]) {
                        part.clone().for_each(|i| y[i] += score / total * value[i]);
                    }
                }
                let y = self.matvec(Wo, layer, &y);
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                let y = self.rmsnorm(RmsFfn, layer, &x);
                let (gate, up) = (self.matvec(W1, layer, &y), self.matvec(W3, layer, &y));
                let h: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let y = self.matvec(W2, layer, &h);
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            }
            all.push(self.matvec(Wcls, 0, &self.rmsnorm(RmsFinal, 0, &x)));
        }
        all
    }
}

fn rope(mut x: Vec<f64>, pos: usize, head_size: usize) -> Vec<f64> {
    for i in (0..x.len()).step_by(2) {
        let angle = pos as f64 / 10000f64.powf((i % head_size) as f64 / head_size as f64);
        let (v0, v1) = (x[i], x[i + 1]);
        x[i] = v0 * angle.cos() - v1 * angle.sin();
        x[i + 1] = v0 * angle.sin() + v1 * angle.cos();
    }
    x
}
