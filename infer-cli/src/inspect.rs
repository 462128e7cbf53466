//! Shows what is in a model file and what running it takes.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::format::{Header, Version};
use infer_core::{Error, KvType, Limits, Plan, WeightType};

use crate::args::PlanLimits;
use crate::session::Usage;
use crate::source::Source;

pub fn run(path: Option<&Path>, PlanLimits { max_seq, kv }: PlanLimits) -> anyhow::Result<()> {
    let bytes = Source::model(path)?;
    let in_file = || bytes.name.clone();
    let header = Header::parse(&bytes).with_context(in_file)?;
    let mut out = io::stdout().lock();
    print_header(&mut out, &header, bytes.len())?;
    let layout = header.layout().with_context(in_file)?;
    print_tensors(&mut out, &layout)?;
    let (need, have) = (layout.file_bytes, bytes.len() as u64);
    if have < need {
        return Err(Error::Truncated { need, have }).with_context(in_file);
    }
    writeln!(out, "{:<14} {need:>40}", "end")?;
    if have > need {
        writeln!(out, "{:<14} {:>40} (ignored)", "after the end", have - need)?;
    }

    if let Some(n) = max_seq
        && (n == 0 || n > header.config.seq_len)
    {
        return Err(
            Usage(format!("--plan max_seq={n}: give 1 to {}, the model's seq_len", header.config.seq_len)).into()
        );
    }
    let max_seq = max_seq.unwrap_or(header.config.seq_len);
    let limits = Limits { max_seq, batch: 1, threads: 1, kv: kv.into() };
    let plan = header.config.plan(limits).with_context(in_file)?;
    Ok(print_plan(&mut out, &plan)?)
}

fn print_header(out: &mut impl Write, header: &Header, file_bytes: usize) -> io::Result<()> {
    let c = &header.config;
    let version = match header.version {
        Version::V0 => 0,
        Version::V1 => 1,
        Version::V2 => 2,
    };
    let weights = match c.weights {
        WeightType::F32 => "f32".to_owned(),
        WeightType::Q8 { group_size } => format!("int8, group size {group_size}"),
    };
    writeln!(out, "version        {version} ({weights})")?;
    writeln!(out, "file bytes     {file_bytes}")?;
    for (name, value) in [
        ("dim", c.dim),
        ("hidden_dim", c.hidden_dim),
        ("n_layers", c.n_layers),
        ("n_heads", c.n_heads),
        ("n_kv_heads", c.n_kv_heads),
        ("vocab_size", c.vocab_size),
        ("seq_len", c.seq_len),
    ] {
        writeln!(out, "{name:<14} {value}")?;
    }
    writeln!(out, "classifier     {}", if c.shared_classifier { "shared with tok_emb" } else { "its own (wcls)" })
}

fn print_tensors(out: &mut impl Write, layout: &infer_core::format::Layout) -> io::Result<()> {
    writeln!(
        out,
        "\n{:<14} {:>5} {:>16} {:>4} {:>11} {:>12}",
        "tensor", "count", "rows x cols", "type", "offset", "bytes"
    )?;
    for tensor in layout.iter() {
        let shape = format!("{} x {}", tensor.rows, tensor.cols);
        let weights = match tensor.weights {
            WeightType::F32 => "f32",
            WeightType::Q8 { .. } => "int8",
        };
        writeln!(
            out,
            "{:<14} {:>5} {shape:>16} {weights:>4} {:>11} {:>12}",
            tensor.name.as_str(),
            tensor.count,
            tensor.offset,
            tensor.bytes()
        )?;
    }
    Ok(())
}

fn print_plan(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let kv = match plan.limits.kv {
        KvType::F32 => "f32",
        KvType::I8 => "int8",
    };
    writeln!(out, "\nRAM plan: max_seq {}, one token at a time, {kv} KV cache (bytes)", plan.limits.max_seq)?;
    let rows = [
        ("activations", plan.hot_bytes()),
        ("KV cache", plan.kv_bytes()),
        ("total", plan.hot_bytes() + plan.kv_bytes()),
    ];
    for (name, bytes) in rows {
        writeln!(out, "{name:<16} {bytes:>12}")?;
    }
    writeln!(out, "{:<16} {:>12}  top-p sampling only", "sampler", plan.sampler_bytes())?;
    writeln!(
        out,
        "{:<16} {:>12}  in RAM, or in flash if built at compile time",
        "tokenizer index",
        plan.tokenizer_bytes()
    )
}
