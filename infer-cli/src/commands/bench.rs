//! Measures speed, and says how near it is to what the machine can do.

mod random;

use std::io::{self, Write};
use std::time::Instant;

use anyhow::Context;
use clap::ValueEnum;
use infer_core::format::Header;
use infer_core::{
    BOS, Engine, HASH_START, Kernels, Limits, Model, Sampler, State, WeightType, classify, forward, hash_logits,
};
use serde::Serialize;

use crate::args::{BenchArgs, Shape, Weights};
use crate::bandwidth;
use crate::machine;
use crate::session::{Usage, buffers, start_pool};
use crate::source::Source;

/// The results of a run: the fields of the JSON object.
#[derive(Serialize)]
struct Report {
    cpu: String,
    cpu_features: Vec<&'static str>,
    model: String,
    weights: String,
    kernels: &'static str,
    threads: usize,
    batch: usize,
    prompt: usize,
    tokens: usize,
    repeat: usize,
    weight_bytes: u64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    decode_milliseconds_per_token: f64,
    decode_gigabytes_per_second: f64,
    bandwidth_gigabytes_per_second: f64,
    bandwidth_percent: f64,
    time_to_first_token_milliseconds: f64,
    /// What the plan counts: activations, scratch and KV cache.
    planned_bytes: u64,
    peak_memory_bytes: Option<u64>,
    logits_hash: String,
}

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let report = if args.shape.is_some() || args.weights.is_some() {
        let shape = args.shape.unwrap_or(Shape::S15M);
        let name = shape.to_possible_value().map_or(String::new(), |value| format!("random {}", value.get_name()));
        measure(args, name, random::model(shape, args.weights.unwrap_or(Weights::Int8))?.bytes())?
    } else {
        let name = args.model.as_ref().map_or("embedded default".into(), |path| path.display().to_string());
        measure(args, name, &Source::model(args.model.as_deref())?)?
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        print_table(&mut out, &report)?;
    }
    Ok(())
}

fn measure(args: &BenchArgs, name: String, bytes: &[u8]) -> anyhow::Result<Report> {
    let in_file = || format!("model {name}");
    let kernels = choose_kernels(args.kernels.as_deref())?;
    let config = *Model::from_bytes(bytes).with_context(in_file)?.config();
    let pool = start_pool(args.threads, &config, 1)?;
    let engine = Engine::new(kernels, &pool);
    let tokens = args.tokens.get().min(config.seq_len);
    let prompt_tokens = args.prompt.unwrap_or(args.tokens).get().min(config.seq_len);
    let batch = args.batch.get().min(prompt_tokens);
    let prompt: Vec<u32> = (0..prompt_tokens).map(|i| ((i * 7919 + 1) % config.vocab_size) as u32).collect();

    let start = Instant::now();
    let model = Model::from_bytes(bytes)?;
    let mut buffers = buffers(
        &config,
        Limits::new(tokens.max(prompt_tokens))
            .with_batch(batch)
            .with_threads(pool.threads().get())
            .with_kv(args.kv.into()),
    )?;
    let plan = *buffers.plan();
    let mut state = buffers.state()?;
    forward(&model, &mut state, &engine, &[BOS])?;
    classify(&model, &mut state, &engine, 0).with_context(in_file)?;
    let first = start.elapsed().as_secs_f64() * 1e3;

    let (mut prefill, mut decode, mut hash) = (Vec::new(), Vec::new(), 0);
    for _ in 0..args.repeat.get() {
        let (seconds, prompt_hash) = read_prompt(&model, &mut state, &engine, &prompt, batch)?;
        prefill.push(prompt_tokens as f64 / seconds);
        let (seconds, logits_hash) = generate(&model, &mut state, &engine, tokens, prompt_hash)?;
        decode.push(tokens as f64 / seconds);
        hash = logits_hash;
    }
    let weight_bytes = weight_bytes(&model.header())?;
    let decode = median(decode);
    let speed = decode * weight_bytes as f64;
    let bandwidth = bandwidth::measure(&bytes[bytes.len().saturating_sub(weight_bytes as usize)..], &pool);
    Ok(Report {
        cpu: machine::cpu(),
        cpu_features: machine::features(),
        model: name,
        weights: match config.weights {
            WeightType::F32 => "f32".into(),
            WeightType::Q8 { group_size } => format!("int8, group size {group_size}"),
        },
        kernels: kernels.name,
        threads: pool.threads().get(),
        batch,
        prompt: prompt_tokens,
        tokens,
        repeat: args.repeat.get(),
        weight_bytes,
        prefill_tokens_per_second: median(prefill),
        decode_tokens_per_second: decode,
        decode_milliseconds_per_token: 1e3 / decode,
        decode_gigabytes_per_second: speed / 1e9,
        bandwidth_gigabytes_per_second: bandwidth / 1e9,
        bandwidth_percent: 100.0 * speed / bandwidth,
        time_to_first_token_milliseconds: first,
        planned_bytes: plan.hot_bytes() + plan.kv_bytes(),
        peak_memory_bytes: machine::peak_memory(),
        logits_hash: format!("{hash:016x}"),
    })
}

/// Seconds to read the prompt, in batches, up to the logits of its last token, and their hash.
fn read_prompt(
    model: &Model<'_>,
    state: &mut State<'_>,
    engine: &Engine<'_>,
    prompt: &[u32],
    batch: usize,
) -> anyhow::Result<(f64, u64)> {
    let start = Instant::now();
    state.rewind(0)?;
    for tokens in prompt.chunks(batch) {
        forward(model, state, engine, tokens)?;
    }
    let logits = classify(model, state, engine, (prompt.len() - 1) % batch)?;
    Ok((start.elapsed().as_secs_f64(), hash_logits(HASH_START, logits)))
}

/// Seconds to generate `n` tokens from BOS, always the most likely one, and `hash` continued over
/// all their logits.
fn generate(
    model: &Model<'_>,
    state: &mut State<'_>,
    engine: &Engine<'_>,
    n: usize,
    mut hash: u64,
) -> anyhow::Result<(f64, u64)> {
    let mut sampler = Sampler::new(0.0, 0.0, 1)?;
    let (mut seconds, mut token) = (0.0, BOS);
    state.rewind(0)?;
    for _ in 0..n {
        let start = Instant::now();
        forward(model, state, engine, &[token])?;
        let logits = classify(model, state, engine, 0)?;
        token = sampler.sample(logits, &mut [])?; // temperature 0 leaves the logits as they are
        seconds += start.elapsed().as_secs_f64();
        hash = hash_logits(hash, logits);
    }
    Ok((seconds, hash))
}

fn choose_kernels(name: Option<&str>) -> anyhow::Result<Kernels> {
    let Some(name) = name else { return Ok(Kernels::detect()) };
    Kernels::all().find(|kernels| kernels.name == name).ok_or_else(|| {
        let names: Vec<_> = Kernels::all().map(|kernels| kernels.name).collect();
        Usage(format!("--kernels {name}: this machine has {}", names.join(", "))).into()
    })
}

/// Bytes that are read for one token: all matrices, the embedding only as classifier.
fn weight_bytes(header: &Header) -> anyhow::Result<u64> {
    let layout = header.layout()?;
    let skipped = |name| {
        use infer_core::format::TensorName::*;
        matches!(name, FreqCisReal | FreqCisImag) || (name == TokEmb && !header.config.shared_classifier)
    };
    Ok(layout.iter().filter(|tensor| !skipped(tensor.name)).map(|tensor| tensor.bytes()).sum())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_table(out: &mut impl Write, r: &Report) -> io::Result<()> {
    let memory = r.peak_memory_bytes.map_or("unknown".into(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
    let features = if r.cpu_features.is_empty() { String::new() } else { format!(" ({})", r.cpu_features.join(", ")) };
    writeln!(out, "cpu                  {}{features}", r.cpu)?;
    writeln!(out, "model                {} ({}, {:.1} MB per token)", r.model, r.weights, r.weight_bytes as f64 / 1e6)?;
    writeln!(out, "kernels, threads     {}, {}", r.kernels, r.threads)?;
    writeln!(
        out,
        "prefill              {:.1} tok/s ({} tokens, {} at a time)",
        r.prefill_tokens_per_second, r.prompt, r.batch
    )?;
    writeln!(out, "decode               {:.1} tok/s ({} tokens)", r.decode_tokens_per_second, r.tokens)?;
    writeln!(out, "                     {:.3} ms per token", r.decode_milliseconds_per_token)?;
    writeln!(
        out,
        "                     {:.1} GB/s, {:.0}% of {:.1} GB/s: reading the same {:.1} MB again and again",
        r.decode_gigabytes_per_second,
        r.bandwidth_percent,
        r.bandwidth_gigabytes_per_second,
        r.weight_bytes as f64 / 1e6
    )?;
    writeln!(out, "time to first token  {:.2} ms", r.time_to_first_token_milliseconds)?;
    writeln!(
        out,
        "memory               {:.1} MB planned, {memory} at most with the model",
        r.planned_bytes as f64 / 1e6
    )?;
    writeln!(out, "logits hash          {}", r.logits_hash)
}
