//! Logits against the oracle, against golden values, and against themselves computed in other ways.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use infer_core::format::{TensorName, Version};
use infer_core::{
    Config, Engine, HASH_START, HotBuffers, Kernels, KvBuffers, KvType, Limits, Model, Pool, Rope, RopeScaling, Runner,
    Serial, State, WeightType, begin, classify, forward, hash_logits, step,
};
use serde::Deserialize;
use tests::oracle::{self, Oracle};
use tests::random::{File, RandomModel, config, int8_shapes, odd_shapes};
use tests::tolerance::{INT8_KV_LOGITS, INT8_LOGITS, RANDOM_F32_LOGITS, STORIES260K_LOGITS, TRAINED_LOGITS, check};
use tests::{Run, shared};

const STORIES: &str = "data/models/stories260K/stories260K.bin";

fn tokens(n: usize, vocab_size: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(n as u64);
    (0..n).map(|_| rng.u32(..vocab_size as u32)).collect()
}

#[test]
fn random_shapes_agree_with_the_oracle() {
    for (seed, config) in odd_shapes().into_iter().enumerate() {
        let file = RandomModel::new(config, seed as u64).to_file(Version::V0);
        let tokens = tokens(config.seq_len, config.vocab_size);
        let want = Oracle::read(file.bytes()).logits(&tokens);
        let got = Run::new(file.bytes(), 1).logits(&tokens).unwrap();
        for (pos, (got, want)) in got.iter().zip(&want).enumerate() {
            check(got, want, RANDOM_F32_LOGITS).unwrap_or_else(|e| panic!("{config:?} at {pos}: {e}"));
        }
    }
}

#[test]
fn other_rotary_embeddings_and_norms_agree_with_the_oracle() {
    let (factor, low_freq_factor, high_freq_factor, original_seq_len) = (8.0, 1.0, 4.0, 30);
    let llama3 = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len };
    let linear = RopeScaling::Linear { factor: 3.0 };
    for (i, (theta, scaling)) in [(5e5, llama3), (1e4, linear), (1e5, RopeScaling::None)].into_iter().enumerate() {
        // Small activations, which tell one eps from another.
        let plain = config(64, 96, 2, 4, 2);
        let mut model = RandomModel::new(plain, i as u64);
        model.tensor_mut(TensorName::TokEmb).iter_mut().for_each(|w| *w *= 1e-3);
        let mut oracle = Oracle::read(model.to_file(Version::V0).bytes());
        model.config = plain.with_rope(Rope::new(theta).with_scaling(scaling)).with_norm_eps(1e-6);
        let file = model.to_file(Version::V1);
        let tokens = tokens(40, plain.vocab_size);
        let plain_logits = oracle.logits(&tokens);
        oracle.norm_eps = 1e-6;
        oracle.frequencies = oracle::frequencies(16, theta.into());
        for freq in &mut oracle.frequencies {
            *freq /= match scaling {
                RopeScaling::Linear { .. } => 3.0,
                RopeScaling::Llama3 { .. } => match (30.0 * *freq / std::f64::consts::TAU - 1.0) / 3.0 {
                    fast if fast > 1.0 => 1.0,
                    slow if slow < 0.0 => 8.0,
                    fast => 1.0 / ((1.0 - fast) / 8.0 + fast),
                },
                _ => 1.0,
            };
        }
        let want = oracle.logits(&tokens);
        for (pos, (got, want)) in Run::new(file.bytes(), 4).logits(&tokens).unwrap().iter().zip(&want).enumerate() {
            check(got, want, RANDOM_F32_LOGITS).unwrap_or_else(|e| panic!("{scaling:?} at {pos}: {e}"));
            assert!(
                check(got, &plain_logits[pos], RANDOM_F32_LOGITS).is_err(),
                "{scaling:?} at {pos}: as a plain model"
            );
        }
    }
}

#[derive(Deserialize)]
struct Logits64 {
    tokens: Vec<u32>,
    logits: BTreeMap<usize, Vec<f64>>,
}

#[test]
fn stories260k_agrees_with_float64() {
    let (Some(golden), Some(bytes)) = (shared::json::<Logits64>("golden/logits_f64.json"), shared::bytes(STORIES))
    else {
        return;
    };
    let file = File::new(&bytes);
    let got = Run::new(file.bytes(), 8).logits(&golden.tokens).unwrap();
    assert!(!golden.logits.is_empty());
    for (pos, want) in &golden.logits {
        check(&got[*pos], want, STORIES260K_LOGITS).unwrap_or_else(|e| panic!("position {pos}: {e}"));
    }
}

#[derive(Deserialize)]
struct Output {
    prompt_ids: Vec<u32>,
    last_logits_first8: Vec<f64>,
    greedy_ids: Vec<u32>,
}

#[test]
fn other_models_agree_with_float64() {
    let Some(golden) = shared::json::<BTreeMap<String, serde_json::Value>>("golden/outputs.json") else { return };
    for (name, model) in [
        ("stories260K", STORIES),
        ("tok105", "data/models/tok105/model5000.bin"),
        ("llama2xs_ckpt", "data/models/llama2xs_ckpt/model.bin"),
    ] {
        let output: Output = serde_json::from_value(golden[name].clone()).unwrap();
        let file = File::new(&shared::bytes(model).unwrap());
        let got = Run::new(file.bytes(), 32).logits(&output.greedy_ids).unwrap();
        check(&got[output.prompt_ids.len() - 1][..8], &output.last_logits_first8, TRAINED_LOGITS)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for (pos, &id) in output.greedy_ids.iter().enumerate().skip(output.prompt_ids.len()) {
            let logits = &got[pos - 1];
            let best = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
            assert_eq!(logits[id as usize], best, "{name}: token {pos} of the greedy continuation");
        }
    }
}

#[test]
fn version_1_gives_the_logits_of_version_0() {
    let tokens = tokens(40, 300);
    for (seed, config) in odd_shapes().into_iter().enumerate() {
        let model = RandomModel::new(config, seed as u64);
        let [v0, v1] = [Version::V0, Version::V1].map(|version| model.to_file(version));
        let [v0, v1] = [&v0, &v1].map(|file| Run::new(file.bytes(), 4).logits(&tokens).unwrap());
        assert_eq!(v0, v1, "{config:?}");
    }
    let (Some(v0), Some(v1)) =
        (shared::bytes(STORIES), shared::bytes("data/models/stories260K/stories260K.export_v1.bin"))
    else {
        return;
    };
    let [v0, v1] = [v0, v1].map(|bytes| Run::new(File::new(&bytes).bytes(), 1).logits(&tokens).unwrap());
    assert_eq!(v0, v1);
}

/// Runs tasks on threads of their own, last index first.
struct Scrambled(NonZeroUsize);

#[allow(unsafe_code)]
// SAFETY: `run` gives each index to one thread, once, and returns when all threads have ended.
unsafe impl Runner for Scrambled {
    fn threads(&self) -> NonZeroUsize {
        self.0
    }

    fn min_work(&self) -> usize {
        1 // so that tiny models are cut as well
    }

    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            let threads = n.min(40);
            for thread in (0..threads).rev() {
                scope.spawn(move || (thread..n).step_by(threads).for_each(task));
            }
        });
    }
}

fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn batches_and_threads_give_the_same_bits() {
    let mut files: Vec<File> = odd_shapes()
        .into_iter()
        .enumerate()
        .map(|(seed, config)| RandomModel::new(config, seed as u64).to_file(Version::V0))
        .collect();
    for model in [STORIES, "data/models/stories260K/stories260K_q80_g4.bin"] {
        files.extend(shared::bytes(model).map(|bytes| File::new(&bytes)));
    }
    for file in &files {
        let tokens = tokens(40, 300);
        let one_by_one = bits(&Run::new(file.bytes(), 1).logits(&tokens).unwrap());
        for batch in [2, 3, 32, 40] {
            assert_eq!(bits(&Run::new(file.bytes(), batch).logits(&tokens).unwrap()), one_by_one, "batch {batch}");
        }
        // There are also more threads than the state has scratch for, more than a matrix has rows,
        // and as many as there is work for, which is how firmware feeds a watchdog.
        for (threads, planned) in [(2, 2), (3, 8), (5, 1), (40, 40), (usize::MAX, 1)] {
            let runner = Scrambled(NonZeroUsize::new(threads).unwrap());
            let mut run = Run::with_runner(file.bytes(), 3, planned, &runner);
            assert_eq!(bits(&run.logits(&tokens[..7]).unwrap()), one_by_one[..7], "{threads} threads");
        }
    }
}

#[test]
fn kernels_give_the_same_bits() {
    let f32_files = odd_shapes().into_iter().map(|config| (config, Version::V1));
    let q8_files = int8_shapes().into_iter().map(|config| (config, Version::V2));
    for (seed, (config, version)) in f32_files.chain(q8_files).enumerate() {
        let file = RandomModel::new(config, seed as u64).to_file(version);
        let tokens = tokens(20, 300);
        let want = bits(&Run::new(file.bytes(), 1).logits(&tokens).unwrap());
        let runner = Scrambled(NonZeroUsize::new(3).unwrap());
        for kernels in Kernels::all() {
            for batch in [1, 7] {
                let engine = Engine::new(kernels, &runner);
                let got = bits(&Run::with_engine(file.bytes(), batch, 2, engine).logits(&tokens).unwrap());
                assert_eq!(got, want, "{} kernels, batch {batch}, {config:?}", kernels.name);
            }
        }
    }
}

/// Shapes for kernels of many tokens: rows and columns that fill no block, heads that fill no
/// register, queries that share keys, and vocabularies small and large.
fn prompt_shapes() -> Vec<(Config, Version)> {
    let shape = |dim, hidden_dim, n_heads, n_kv_heads, vocab_size| {
        Config::new(dim, hidden_dim, 2, n_heads, vocab_size, 260).with_kv_heads(n_kv_heads)
    };
    let q8 = |group_size: usize, config: Config| config.with_weights(WeightType::Q8 { group_size });
    vec![
        (shape(48, 100, 2, 1, 300), Version::V1),                       // head size 24
        (shape(72, 530, 1, 1, 300).with_own_classifier(), Version::V1), // head size 72, more than a chunk
        (shape(30, 7, 3, 3, 300), Version::V1),                         // head size 10
        (shape(64, 40, 4, 2, 32_000), Version::V1),                     // head size 16
        (q8(4, shape(48, 100, 2, 1, 300)), Version::V2),
        (q8(12, shape(72, 132, 3, 1, 300).with_own_classifier()), Version::V2),
        (q8(32, shape(288, 96, 6, 6, 32_000)), Version::V2), // nine groups in a row, as 15M
        (q8(64, shape(64, 192, 8, 4, 300)), Version::V2),    // 260K: head size 8
    ]
}

#[test]
fn prompts_in_batches_give_the_same_bits_in_every_way() {
    for (seed, (config, version)) in (20..).zip(prompt_shapes()) {
        let file = RandomModel::new(config, seed).to_file(version);
        let tokens = tokens(257, 300);
        // The logits behind some of the tokens; they depend on all keys and values before them.
        let hash = |batch: usize, threads: usize, engine: Engine<'_>| {
            let mut run = Run::with_engine(file.bytes(), batch, threads, engine);
            let model = run.model;
            let mut state = run.state();
            let mut hash = HASH_START;
            let mut read = 0;
            for tokens in tokens.chunks(batch) {
                forward(&model, &mut state, &engine, tokens).unwrap();
                for row in (read..read + tokens.len()).filter(|i| i % 64 == 0) {
                    hash = hash_logits(hash, classify(&model, &mut state, &engine, row - read).unwrap());
                }
                read += tokens.len();
            }
            hash
        };
        let want = hash(1, 1, Engine::scalar());
        for kernels in Kernels::all() {
            for (batch, threads) in [(1, 2), (4, 2), (7, 3), (8, 1), (9, 4), (32, 5), (100, 6), (128, 7), (256, 8)] {
                let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
                let got = hash(batch, threads, Engine::new(kernels, &pool));
                assert_eq!(got, want, "{}, batch {batch}, {threads} threads, {config:?}", kernels.name);
            }
        }
    }
}

/// Shapes for an int8 KV cache, with the positions to run them for. Integer products are summed
/// over 256 positions at a time, so some runs have fewer, some more than one block, and some more
/// than two.
fn int8_kv_shapes() -> Vec<(Config, usize)> {
    let q8 = |group_size: usize, config: Config| config.with_weights(WeightType::Q8 { group_size });
    vec![
        (config(4, 3, 1, 1, 1), 37),           // one head of 4
        (config(12, 20, 2, 3, 1), 261),        // head size 4, three queries share one key
        (config(16, 9, 2, 2, 2), 521),         // head size 8
        (config(36, 36, 1, 3, 3), 37),         // head size 12
        (config(96, 31, 2, 2, 1), 261),        // head size 48
        (q8(4, config(12, 20, 2, 3, 1)), 521), // more scales than groups in a row have, and int8 weights
        (q8(8, config(24, 40, 2, 2, 2)), 261), // head size 12
        (q8(32, config(96, 64, 1, 2, 2)), 37),
        (q8(64, config(64, 192, 5, 8, 4)), 45), // 260K
    ]
}

fn int8_kv_files() -> impl Iterator<Item = (File, Config, Limits)> {
    int8_kv_shapes().into_iter().zip(0..).map(|((mut config, max_seq), seed)| {
        config.seq_len = max_seq + 3;
        let version = if let WeightType::F32 = config.weights { Version::V0 } else { Version::V2 };
        let limits = Limits::new(max_seq).with_kv(KvType::Q8);
        (RandomModel::new(config, seed).to_file(version), config, limits)
    })
}

#[test]
fn int8_kv_gives_the_same_bits_in_every_way() {
    for (file, config, limits) in int8_kv_files() {
        let tokens = tokens(limits.max_seq, 300);
        let want = bits(&Run::with_limits(file.bytes(), limits, Engine::scalar()).logits(&tokens).unwrap());
        let other: Vec<u32> = tokens.iter().map(|token| 299 - token).collect();
        for kernels in Kernels::all() {
            for (batch, threads) in [(1, 1), (2, 2), (32, 3)] {
                let runner = Scrambled(NonZeroUsize::new(threads).unwrap());
                let engine = Engine::new(kernels, &runner);
                let mut run = Run::with_limits(file.bytes(), limits.with_batch(batch).with_threads(threads), engine);
                if batch == 32 {
                    run.logits(&other).unwrap(); // a longer sequence was there before, else garbage
                }
                let tokens = &tokens[..tokens.len() - 5];
                let got = bits(&run.logits(tokens).unwrap());
                assert_eq!(got, want[..tokens.len()], "{} kernels, batch {batch}, {config:?}", kernels.name);
            }
        }
    }
}

/// Without queries all weights are equal, and with two tokens many values have one sign. That
/// brings integer sums near their limit, and beyond the integers that f32 holds exactly.
#[test]
fn large_sums_of_an_int8_kv_cache() {
    let config = Config::new(48, 31, 1, 2, 300, 700).with_kv_heads(1);
    let mut model = RandomModel::new(config, 1);
    model.tensor_mut(TensorName::Wq).fill(0.0);
    let file = model.to_file(Version::V0);
    let tokens = tokens(700, 2);
    let limits = Limits::new(700).with_batch(50).with_kv(KvType::Q8);
    let logits = |kernels| {
        let engine = Engine::new(kernels, &Serial);
        bits(&Run::with_limits(file.bytes(), limits, engine).logits(&tokens).unwrap())
    };
    let want = logits(Kernels::scalar());
    for kernels in Kernels::all() {
        assert_eq!(logits(kernels), want, "{} kernels", kernels.name);
    }
}

#[test]
fn bytes_may_lie_at_any_address() {
    let config = config(24, 40, 2, 2, 1).with_weights(WeightType::Q8 { group_size: 8 });
    let file = RandomModel::new(config, 5).to_file(Version::V2);
    let limits = Limits::new(37).with_batch(3).with_kv(KvType::Q8);
    let (plan, model) = (config.plan(limits).unwrap(), Model::from_bytes(file.bytes()).unwrap());
    let tokens = tokens(3, 300);
    let want = bits(&Run::with_limits(file.bytes(), limits, Engine::scalar()).logits(&tokens).unwrap());
    let [mut hot_f32, mut scales] = [plan.hot_f32, plan.kv_scales].map(|n| vec![f32::from_bits(u32::MAX); n]);
    for kernels in Kernels::all() {
        let engine = Engine::new(kernels, &Serial);
        for shift in 0..4 {
            let [mut hot_i8, mut values] = [plan.hot_i8, plan.kv_values].map(|n| vec![-128; shift + n]);
            let hot = HotBuffers { f32: &mut hot_f32, i8: &mut hot_i8[shift..] };
            let kv = KvBuffers::Q8 { values: &mut values[shift..], scales: &mut scales };
            let mut state = State::new(&plan, hot, kv).unwrap();
            forward(&model, &mut state, &engine, &tokens).unwrap();
            let row = |row: usize| classify(&model, &mut state, &engine, row).unwrap().to_vec();
            assert_eq!(bits(&[0, 1, 2].map(row)), want, "{} kernels, moved by {shift}", kernels.name);
        }
    }
}

#[test]
fn int8_kv_is_close_to_the_oracle() {
    for (file, config, limits) in int8_kv_files().filter(|(_, config, _)| config.weights == WeightType::F32) {
        let tokens = tokens(limits.max_seq, 300);
        let want = Oracle::read(file.bytes()).logits(&tokens);
        let got = Run::with_limits(file.bytes(), limits, Engine::scalar()).logits(&tokens).unwrap();
        for (pos, (got, want)) in got.iter().zip(&want).enumerate() {
            check(got, want, INT8_KV_LOGITS).unwrap_or_else(|e| panic!("{config:?} at {pos}: {e}"));
        }
    }
}

#[test]
fn logits_do_not_depend_on_what_was_there_before() {
    for kv in [KvType::F32, KvType::Q8] {
        logits_do_not_depend_on_what_was_there_before_in(kv);
    }
}

fn logits_do_not_depend_on_what_was_there_before_in(kv: KvType) {
    let file = RandomModel::new(config(48, 31, 2, 6, 2), 1).to_file(Version::V0);
    let model = Model::from_bytes(file.bytes()).unwrap();
    let engine = Engine::scalar();
    let tokens = tokens(12, 300);
    let run = |batch: usize| Run::with_limits(file.bytes(), Limits::new(13).with_batch(batch).with_kv(kv), engine);
    let want = run(1).logits(&tokens).unwrap();

    let mut run = run(4);
    let mut state = run.state();
    forward(&model, &mut state, &engine, &[9, 8, 7, 6]).unwrap();
    state.rewind(0).unwrap(); // a new sequence
    forward(&model, &mut state, &engine, &tokens[..4]).unwrap();
    forward(&model, &mut state, &engine, &[5, 5, 5]).unwrap(); // a branch that is given up
    state.rewind(4).unwrap();
    forward(&model, &mut state, &engine, &tokens[4..8]).unwrap();
    begin(&model, &mut state, &[1, 2]).unwrap(); // a pass that is given up after a layer
    assert!(step(&model, &mut state, &engine).unwrap());
    assert_eq!(state.filled(), 8);
    forward(&model, &mut state, &engine, &tokens[8..]).unwrap();
    for row in [3, 0, 2, 1, 3] {
        assert_eq!(classify(&model, &mut state, &engine, row).unwrap(), want[8 + row], "row {row}");
    }
}

#[test]
fn int8_is_close_to_the_weights_it_was_made_from() {
    let Some(golden) = shared::json::<Logits64>("golden/logits_f64.json") else { return };
    let file = File::new(&shared::bytes("data/models/stories260K/stories260K_q80_g4.bin").unwrap());
    let got = Run::new(file.bytes(), 8).logits(&golden.tokens).unwrap();
    for (pos, want) in &golden.logits {
        check(&got[*pos], want, INT8_LOGITS).unwrap_or_else(|e| panic!("position {pos}: {e}"));
    }
}

/// Vector units of some chips count subnormal numbers as 0, and so does a process that links code
/// built with `-ffast-math`.
#[cfg(target_arch = "x86_64")]
#[test]
fn flushed_subnormals_give_the_same_bits() {
    use std::hint::black_box;
    assert_eq!(tests::mxcsr::with(tests::mxcsr::FLUSH, || black_box(1e-40f32) * black_box(1.0)), 0.0);
    let Some(bytes) = shared::bytes(STORIES) else { return };
    let int8 = int8_kv_files();
    let file = File::new(&bytes);
    let f32_kv = Limits::new(64);
    let all = [(file, f32_kv)].into_iter().chain(int8.map(|(file, _, limits)| (file, limits)));
    for (file, limits) in all {
        for kernels in Kernels::all() {
            let engine = Engine::new(kernels, &Serial);
            let mut run = Run::with_limits(file.bytes(), limits, engine);
            let tokens = tokens(limits.max_seq.min(40), run.model.config().vocab_size);
            let want = run.logits(&tokens).unwrap();
            let got = tests::mxcsr::with(tests::mxcsr::FLUSH, || run.logits(&tokens).unwrap());
            assert!(bits(&got) == bits(&want), "{kernels:?}, {:?}", run.model.config());
        }
    }
}
