//! Compares the kernels of this core with the scalar ones, bit by bit, for shapes and numbers that
//! a trained model does not have: subnormal numbers, which some vector units flush, and damage.
//! Also compares `math::thumb` with `math`, which defines it.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use firmware_example::random::{Random, fill_model};
use firmware_example::{board, engine, print};
use infer_core::format::{Header, TensorName, Version};
#[cfg(target_abi = "eabihf")]
use infer_core::math::{self, thumb};
use infer_core::{
    Aligned, Config, Engine, Error, HASH_START, HotBuffers, KvBuffers, KvType, Limits, Model, State, WeightType,
    classify, forward, hash_bytes, hash_logits,
};

const fn shape(
    [dim, hidden_dim, n_layers]: [usize; 3],
    [n_heads, n_kv_heads]: [usize; 2],
    vocab_size: usize,
    weights: WeightType,
) -> Config {
    let config = Config::new(dim, hidden_dim, n_layers, n_heads, vocab_size, 300);
    let config = config.with_kv_heads(n_kv_heads).with_weights(weights);
    if vocab_size.is_multiple_of(2) { config } else { config.with_own_classifier() }
}

const fn q8(group_size: usize) -> WeightType {
    WeightType::Q8 { group_size }
}

/// Shapes, each with the number of positions to run.
const SHAPES: [(Config, usize); 9] = [
    (shape([64, 192, 2], [8, 4], 96, q8(64)), 20), // the firmware's model, with fewer layers
    (shape([96, 160, 1], [6, 2], 37, q8(32)), 20), // three queries share a key; rows left over
    (shape([48, 176, 1], [2, 2], 30, q8(16)), 12), // more groups than lanes
    (shape([12, 20, 1], [1, 1], 11, q8(4)), 12),   // no kernel but the scalar ones
    (shape([128, 128, 1], [4, 4], 8, q8(128)), 9), // groups of 128
    (shape([16, 16, 1], [1, 1], 6, q8(16)), 270),  // more positions than an integer sum may have
    (shape([64, 172, 1], [8, 4], 51, WeightType::F32), 20), // stories260K
    (shape([30, 37, 1], [3, 1], 15, WeightType::F32), 12), // nothing a multiple of 4
    (shape([40, 44, 1], [5, 5], 9, WeightType::F32), 12), // an odd number of groups of eight
];

/// Changes of the weights that are stored as f32; of int8 weights these are the scales.
const CHANGES: [(&str, fn(&mut Random, TensorName, f32) -> f32); 6] = [
    ("as they are", |_, _, weight| weight),
    // They give softmax weights of 0, and take SwiGLU beyond the range of exp.
    ("large queries and gates", |_, tensor, weight| match tensor {
        TensorName::Wq | TensorName::W1 => weight * 3000.0,
        _ => weight,
    }),
    ("tiny embeddings", |_, tensor, weight| if tensor == TensorName::TokEmb { weight * 1e-20 } else { weight }),
    ("subnormal embeddings", |_, tensor, weight| if tensor == TensorName::TokEmb { weight * 1e-38 } else { weight }),
    ("many subnormal", |random, _, weight| {
        let exponent = (160.0 * random.uniform()) as i32; // half of them stay as they are
        weight * f32::from_bits(((127 - exponent.clamp(0, 126)) as u32) << 23)
    }),
    ("damaged embeddings", |random, tensor, weight| {
        let damaged = tensor == TensorName::TokEmb && random.uniform() > 0.96;
        if damaged { f32::NAN } else { weight }
    }),
];

/// The model file, and memory for the largest of these shapes.
struct Memory {
    file: Aligned<[u8; FILE]>,
    hot_f32: [f32; HOT],
    hot_i8: [i8; HOT],
    kv_f32: [f32; KV],
    kv_i8: [i8; 1 + KV],
    kv_scales: [f32; HOT],
}
const FILE: usize = 300_000; // bytes
const HOT: usize = 2048;
const KV: usize = 9216;

#[entry]
#[allow(unsafe_code)]
fn main() -> ! {
    static mut MEMORY: Memory = Memory {
        file: Aligned([0; FILE]),
        hot_f32: [0.0; HOT],
        hot_i8: [0; HOT],
        kv_f32: [0.0; KV],
        kv_i8: [0; 1 + KV],
        kv_scales: [0.0; HOT],
    };
    board::init();
    let done = run(MEMORY); // cortex-m-rt lends the static to the entry point
    print::text(if done.is_some() { "all as the scalar kernels\n" } else { "FAILED\n" });
    board::exit(done.is_some())
}

fn run(memory: &mut Memory) -> Option<()> {
    print::text("kernels ");
    print::text(engine().kernels.name);
    print::text("\n");
    let mut passed = floor_is_as_defined();
    for (config, positions) in SHAPES {
        let version = if let WeightType::F32 = config.weights { Version::V1 } else { Version::V2 };
        for (name, change) in CHANGES {
            let mut random = Random::new();
            let header = Header::new(version, config);
            let len =
                or_say(fill_model(&header, &mut memory.file.0, |tensor, weight| change(&mut random, tensor, weight)))?;
            for kv in [KvType::F32, KvType::Q8] {
                let limits = Limits::new(positions).with_kv(kv);
                if config.plan(limits).is_err() {
                    continue; // head sizes of an int8 cache are multiples of 4
                }
                let [scalar, fast] = [Engine::scalar(), engine()].map(|engine| run_model(memory, len, limits, &engine));
                if or_say(scalar)? != or_say(fast)? {
                    print::text("dim ");
                    print::number(config.dim as u64);
                    print::text(if let KvType::Q8 = kv { ", int8 KV cache" } else { ", f32 KV cache" });
                    print::text(", weights ");
                    print::text(name);
                    print::text(": not as the scalar kernels\n");
                    passed = None;
                }
            }
        }
    }
    passed
}

/// Whether the FPU's square roots and largest numbers are those of the definition.
#[cfg(target_abi = "eabihf")]
fn floor_is_as_defined() -> Option<()> {
    let mut random = Random::new();
    // Any bits: all exponents, both signs, infinities, and quiet NaNs. Arithmetic gives no others,
    // and compilers do not tell signalling ones apart: a largest number that is one comes out
    // quiet.
    let mut half = || (random.uniform() * 32_768.0) as i32 as u32;
    let mut any = || match f32::from_bits(half() ^ half() << 16) {
        x if x.is_nan() => f32::from_bits(x.to_bits() | 1 << 22),
        x => x,
    };
    let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
    let mut passed = true;
    for x in [0.0, -0.0, 1e-45, 1e-38, f32::MAX, f32::INFINITY, f32::NAN] {
        passed &= same(thumb::sqrt(x), math::sqrt(x));
    }
    let mut x = [0.0; 23];
    for round in 0..20_000 {
        x.fill_with(&mut any);
        let x = x.get(..round % 24).unwrap_or(&[]);
        passed &= x.iter().all(|&x| same(thumb::sqrt(x), math::sqrt(x)));
        passed &= thumb::max(x) == math::max(x);
        passed &= thumb::largest_magnitude(x).to_bits() == math::largest_magnitude(x).to_bits();
    }
    if !passed {
        print::text("math::thumb is not as defined\n");
    }
    passed.then_some(())
}

#[cfg(not(target_abi = "eabihf"))]
fn floor_is_as_defined() -> Option<()> {
    Some(())
}

/// Hashes the logits of all positions; where one is not a number, the index of the first such logit
/// instead.
fn run_model(memory: &mut Memory, len: usize, limits: Limits, engine: &Engine<'_>) -> Result<u64, Error> {
    let Memory { file, hot_f32, hot_i8, kv_f32, kv_i8, kv_scales } = memory;
    let odd = 1 - kv_i8.as_ptr().addr() % 2;
    let model = Model::from_bytes(file.0.get(..len).unwrap_or(&[]))?;
    let kv = match limits.kv {
        KvType::F32 => KvBuffers::F32(kv_f32),
        // A caller's bytes may begin at an odd address.
        KvType::Q8 => KvBuffers::Q8 { values: kv_i8.get_mut(odd..).unwrap_or(&mut []), scales: kv_scales },
    };
    let plan = model.config().plan(limits)?;
    let mut state = State::new(&plan, HotBuffers { f32: hot_f32, i8: hot_i8 }, kv)?;
    let mut hash = HASH_START;
    for pos in 0..limits.max_seq {
        let token = (5 * pos % model.config().vocab_size) as u32;
        forward(&model, &mut state, engine, &[token])?;
        hash = match classify(&model, &mut state, engine, 0) {
            Ok(logits) => hash_logits(hash, logits),
            Err(Error::NotFinite { token }) => hash_bytes(hash, &token.to_le_bytes()),
            Err(error) => return Err(error),
        };
    }
    Ok(hash)
}

fn or_say<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(print::error).ok()
}
