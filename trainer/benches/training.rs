//! Tokens per second of whole training steps: forward, backward, clipping, AdamW.
//!
//! `cargo bench -p trainer --bench training -- [260K|1.4M|15M|110M|7B]... [FLAG]...`
//!
//! Each shape runs a few seconds, with random tokens, in batches of its usual number of sequences
//! or, for `15M:64`, of 64. `--highest` and `--medium` are the trainer's `--matmul-precision`,
//! `--bfloat16` and `--float16` its `--dtype`, `--recompute` is the same; `--composed` is the model
//! of dfdx's operations, on the CPU; `--cuda`, with the feature `cuda`, computes on the first GPU.
//!
//! GFLOP/s count 6 · parameters · tokens, as is usual; attention comes on top of that. The limit
//! beside them is what all threads reach together in a large matrix product in f32.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use dfdx::prelude::{Backward, Cache, Cpu, Rank0, SplitTape, Tensor, Trace, ZerosTensor};
use infer_core::{Config, shapes};
use trainer::model::{
    AdamW, Backend, Batch, Dtype, Gradients, Llama, MatmulPrecision, Options, clip_gradients, composed,
};

/// What the command line asks for.
struct Asked {
    composed: bool,
    precision: MatmulPrecision,
    dtype: Dtype,
    recompute: bool,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let flag = |flag: &str| args.iter().any(|a| a == flag);
    let precision = match () {
        () if flag("--highest") => MatmulPrecision::Highest,
        () if flag("--medium") => MatmulPrecision::Medium,
        () => MatmulPrecision::High,
    };
    let dtype = match () {
        () if flag("--bfloat16") => Dtype::Bfloat16,
        () if flag("--float16") => Dtype::Float16,
        () => Dtype::Float32,
    };
    let asked = Asked { composed: flag("--composed"), precision, dtype, recompute: flag("--recompute") };
    let names: Vec<&str> = args.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    let names = if names.is_empty() { vec!["260K", "1.4M", "15M"] } else { names };
    if flag("--cuda") {
        return on_gpu(&names, &asked);
    }
    println!("limit: {:.0} GFLOP/s on {} threads", limit(), rayon::current_num_threads());
    let device = Cpu::default();
    device.enable_cache();
    let pass = if asked.composed { of_composed } else { of_trainer };
    names.iter().try_for_each(|name| run(name, &asked, &device, pass))
}

#[cfg(feature = "cuda")]
fn on_gpu(names: &[&str], asked: &Asked) -> anyhow::Result<()> {
    anyhow::ensure!(!asked.composed, "--composed runs on a CPU");
    let device = trainer::model::open_gpu(0)?;
    names.iter().try_for_each(|name| run(name, asked, &device, of_trainer))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &[&str], _: &Asked) -> anyhow::Result<()> {
    anyhow::bail!("--cuda needs the feature `cuda`")
}

/// The shapes of llama2.c's models, as its model.py makes them.
fn shape(name: &str) -> anyhow::Result<(Config, usize)> {
    match name {
        "260K" => Ok((shapes::STORIES_260K, 16)),
        "260K-192" => Ok((shapes::FIRMWARE, 16)),
        "1.4M" => Ok((Config::new(128, 352, 6, 8, 2048, 256).with_kv_heads(4), 16)),
        "15M" => Ok((shapes::STORIES_15M, 4)),
        "110M" => Ok((Config::new(768, 2048, 12, 12, 32000, 1024), 4)),
        "7B" => {
            let config = Config::new(4096, 11008, 32, 32, 32000, 4096).with_kv_heads(8);
            Ok((config.with_own_classifier(), 1))
        }
        _ => anyhow::bail!("no shape {name}: 260K, 260K-192, 1.4M, 15M, 110M or 7B"),
    }
}

/// Adds the gradients of a batch up, and returns its loss.
type Pass<D> = fn(&Llama<D>, &Batch, &mut Gradients<D>) -> anyhow::Result<f32>;

fn of_trainer<D: Backend>(model: &Llama<D>, batch: &Batch, gradients: &mut Gradients<D>) -> anyhow::Result<f32> {
    model.loss_and_gradients(batch, &Options::default(), 1.0, gradients)
}

fn of_composed(model: &Llama<Cpu>, batch: &Batch, gradients: &mut Gradients<Cpu>) -> anyhow::Result<f32> {
    let start: Tensor<Rank0, f32, Cpu> = model.device.zeros();
    let tape = start.traced(std::mem::replace(gradients, Gradients::<Cpu>::leaky())).split_tape().1;
    let loss = composed::loss(model, batch, &Options::default(), tape).map_err(|e| anyhow!("{e}"))?;
    let value = loss.as_vec()[0];
    *gradients = loss.backward();
    Ok(value)
}

fn run<D: Backend>(name: &str, asked: &Asked, device: &D, pass: Pass<D>) -> anyhow::Result<()> {
    let (config, sequences) = match name.split_once(':') {
        Some((name, sequences)) => (shape(name)?.0, sequences.parse()?),
        None => shape(name)?,
    };
    let mut rng = fastrand::Rng::with_seed(2);
    // Uniform numbers of the usual deviation are made much faster than normal ones.
    let mut model = Llama::from_fn(config, device, |shape| {
        let mut values = vec![1.0; shape.size()];
        if !shape.is_norm() {
            values.fill_with(|| (rng.f32() - 0.5) * 0.07);
        }
        values
    })?;
    (model.matmul_precision, model.dtype, model.recompute) = (asked.precision, asked.dtype, asked.recompute);
    if model.dtype == Dtype::Float16 {
        model.loss_scale = 1024.0;
    }
    let mut adam = AdamW::new(&model, [0.9, 0.95], 0.1)?;
    let mut rng = fastrand::Rng::with_seed(1);
    let n = sequences * config.seq_len;
    let mut random = || (0..n).map(|_| rng.u32(..config.vocab_size as u32)).collect::<Vec<_>>();
    let (tokens, targets) = (random(), random());
    let batch = Batch { tokens: &tokens, targets: &targets, starts: None, sequences, length: config.seq_len };

    // Wide models take smaller steps, or the loss rises first.
    let learning_rate = 1e-3 * (256.0 / config.dim as f64).min(1.0);
    let mut step = || -> anyhow::Result<f32> {
        let mut gradients = model.zero_gradients()?;
        let loss = pass(&model, &batch, &mut gradients)?;
        clip_gradients(&model, &mut gradients, 1.0)?;
        adam.step(&mut model, learning_rate, &mut gradients)?;
        Ok(loss)
    };
    let first = step()?;
    step()?;
    let (mut times, mut last) = (Vec::new(), first);
    let start = Instant::now();
    while times.len() < 3 || start.elapsed() < Duration::from_secs(4) {
        let start = Instant::now();
        last = step()?;
        times.push(start.elapsed().as_secs_f64());
    }
    anyhow::ensure!(last < first, "the loss does not fall: {first}, then {last}");
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    let (rate, flops) = (n as f64 / mean, 6.0 * model.parameter_count() as f64);
    println!(
        "{name}{}: {rate:.0} tok/s (best {:.0}), {:.1} GFLOP/s, {} parameters, {sequences} x {}, {} steps, loss {first:.4} to \
         {last:.4}",
        if asked.composed { " composed" } else { "" },
        n as f64 / best,
        rate * flops / 1e9,
        model.parameter_count(),
        config.seq_len,
        times.len(),
    );
    // Of the process so far: run the shape alone to know its own.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("    {}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("peak memory unknown"));
    Ok(())
}

/// GFLOP/s of products of 768 x 768 matrices, one after the other on each thread.
#[allow(unsafe_code)]
fn limit() -> f64 {
    const N: usize = 768;
    const ROUNDS: usize = 60;
    let start = Instant::now();
    rayon::broadcast(|_| {
        let (a, b, mut c) = (vec![1.0f32; N * N], vec![1.0f32; N * N], vec![0.0f32; N * N]);
        let (row, none) = (N as isize, gemm::Parallelism::None);
        for _ in 0..ROUNDS {
            let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
            // SAFETY: three matrices of N x N, row-major, none overlapping.
            unsafe {
                gemm::gemm(N, N, N, c, 1, row, false, a, 1, row, b, 1, row, 0.0, 1.0, false, false, false, none);
            }
        }
        assert_eq!(c[N * N - 1], N as f32);
    });
    let products = (ROUNDS * rayon::current_num_threads()) as f64;
    products * 2.0 * (N as f64).powi(3) / start.elapsed().as_secs_f64() / 1e9
}
