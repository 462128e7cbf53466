//! Logits against the oracle, against golden values, and against themselves computed in other ways.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use infer_core::format::Version;
use infer_core::{Engine, Kernels, Model, Runner, begin, classify, forward, step};
use serde::Deserialize;
use tests::oracle::Oracle;
use tests::random::{File, RandomModel, config, int8_shapes, odd_shapes};
use tests::tolerance::{INT8_LOGITS, RANDOM_F32_LOGITS, STORIES260K_LOGITS, TRAINED_LOGITS, check};
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
// SAFETY: every index is spawned once, and the scope ends after all threads have.
unsafe impl Runner for Scrambled {
    fn threads(&self) -> NonZeroUsize {
        self.0
    }

    fn min_work(&self) -> usize {
        1 // so that tiny models are cut as well
    }

    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for i in (0..n).rev() {
                scope.spawn(move || task(i));
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
        // Also more threads than the state has scratch for, and more than a matrix has rows.
        for (threads, planned) in [(2, 2), (3, 8), (5, 1), (40, 40)] {
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
        for kernels in Kernels::all() {
            for batch in [1, 7] {
                let engine = Engine { kernels, runner: &Scrambled(NonZeroUsize::new(3).unwrap()) };
                let got = bits(&Run::with_engine(file.bytes(), batch, 2, engine).logits(&tokens).unwrap());
                assert_eq!(got, want, "{} kernels, batch {batch}, {config:?}", kernels.name);
            }
        }
    }
}

#[test]
fn logits_do_not_depend_on_what_was_there_before() {
    let file = RandomModel::new(config(48, 31, 2, 6, 2), 1).to_file(Version::V0);
    let model = Model::from_bytes(file.bytes()).unwrap();
    let engine = Engine::scalar();
    let tokens = tokens(12, 300);
    let want = Run::new(file.bytes(), 1).logits(&tokens).unwrap();

    let mut run = Run::new(file.bytes(), 4);
    let mut state = run.state();
    forward(&model, &mut state, &engine, &[9, 8, 7, 6], 0).unwrap();
    forward(&model, &mut state, &engine, &tokens[..4], 0).unwrap(); // a new sequence
    forward(&model, &mut state, &engine, &[5, 5, 5], 4).unwrap(); // a branch that is given up
    forward(&model, &mut state, &engine, &tokens[4..8], 4).unwrap();
    begin(&model, &mut state, &[1, 2], 8).unwrap(); // a pass that is given up after a layer
    assert!(step(&model, &mut state, &engine).unwrap());
    assert_eq!(state.filled(), 8);
    forward(&model, &mut state, &engine, &tokens[8..], 8).unwrap();
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
