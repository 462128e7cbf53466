//! Times the kernels of this machine, side by side: `cargo bench -p tests`.
//!
//! Every kernel's logits are compared with the scalar ones before it is timed.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use infer_core::format::Version;
use infer_core::{Config, Engine, Kernels, Serial, WeightType, classify, forward, shapes};
use tests::Run;
use tests::random::RandomModel;

/// Times a classifier that is much larger than the one layer below it, so that nearly all of the
/// time is the product of a matrix and a vector.
fn matmul(c: &mut Criterion) {
    let f32_ = Config::new(256, 256, 1, 4, 8192, 40);
    let int8 = f32_.with_weights(WeightType::Q8 { group_size: 64 });
    for (name, version, config) in [("f32", Version::V1, f32_), ("int8", Version::V2, int8)] {
        let file = RandomModel::new(config, 1).to_file(version);
        let want = Run::new(file.bytes(), 1).logits(&[5]).unwrap();
        let mut group = c.benchmark_group(format!("matmul {name} 8192 x 256"));
        group.throughput(Throughput::Elements(8192 * 256));
        for kernels in Kernels::all() {
            let engine = Engine::new(kernels, &Serial);
            let mut run = Run::with_engine(file.bytes(), 1, 1, engine);
            assert_eq!(run.logits(&[5]).unwrap(), want, "{}", kernels.name);
            let model = run.model;
            let mut state = run.state();
            forward(&model, &mut state, &engine, &[5]).unwrap();
            group.bench_function(BenchmarkId::from_parameter(kernels.name), |b| {
                b.iter(|| black_box(classify(&model, &mut state, &engine, 0).unwrap()[0]));
            });
        }
    }
}

/// Times one token, and a batch of 32, at the end of a long context, where attention takes most of
/// the time.
fn layers(c: &mut Criterion) {
    let file = RandomModel::new(shapes::STORIES_260K, 1).to_file(Version::V1);
    let tokens: Vec<u32> = (0..512).map(|i| i % 300).collect();
    let want = Run::new(file.bytes(), 32).logits(&tokens).unwrap();
    for n in [1, 32] {
        let mut group = c.benchmark_group(format!("layers of 260K, {n} token(s) at position 480"));
        group.throughput(Throughput::Elements(n as u64));
        for kernels in Kernels::all() {
            let engine = Engine::new(kernels, &Serial);
            let mut run = Run::with_engine(file.bytes(), 32, 1, engine);
            assert_eq!(run.logits(&tokens).unwrap(), want, "{}", kernels.name);
            let model = run.model;
            let mut state = run.state();
            for tokens in tokens.chunks(32) {
                forward(&model, &mut state, &engine, tokens).unwrap();
            }
            group.bench_function(BenchmarkId::from_parameter(kernels.name), |b| {
                b.iter(|| {
                    state.rewind(480).unwrap();
                    forward(&model, &mut state, &engine, black_box(&tokens[..n])).unwrap();
                });
            });
        }
    }
}

criterion_group!(benches, matmul, layers);
criterion_main!(benches);
