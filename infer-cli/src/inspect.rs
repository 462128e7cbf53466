//! Shows what is in a model file and what running it takes.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::format::{Header, Version};
use infer_core::{Aligned, Error, KvType, Limits, MergeSlot, Plan, Tokenizer, WeightType};

use crate::args::PlanLimits;
use crate::session::Usage;
use crate::source::Source;

pub fn run(path: Option<&Path>, limits: PlanLimits, c: bool) -> anyhow::Result<()> {
    let bytes = Source::model(path)?;
    let in_file = || bytes.name.clone();
    let header = Header::parse(&bytes).with_context(in_file)?;
    let layout = header.layout_of(bytes.len() as u64).with_context(in_file)?;
    let (need, have) = (layout.file_bytes, bytes.len() as u64);
    let mut out = io::stdout().lock();
    if !c {
        print_header(&mut out, &header, bytes.len())?;
        print_tensors(&mut out, &layout)?;
    }
    if have < need {
        return Err(Error::Truncated { need, have }).with_context(in_file);
    }
    if c {
        return Ok(print_c(&mut out, &plan(&header, limits).with_context(in_file)?, limits.prompt, &bytes.name)?);
    }
    writeln!(out, "{:<14} {need:>40}", "end")?;
    if have > need {
        writeln!(out, "{:<14} {:>40} (ignored)", "after the end", have - need)?;
    }
    let plan = plan(&header, limits).with_context(in_file)?;
    let tokenizer = match path {
        Some(path) => std::fs::metadata(path.with_file_name("tokenizer.bin")).map_or(0, |file| file.len()),
        None => Source::tokenizer(None)?.len() as u64,
    };
    Ok(print_plan(&mut out, &plan, bytes.len(), tokenizer, limits.prompt)?)
}

fn plan(header: &Header, PlanLimits { max_seq, kv, .. }: PlanLimits) -> anyhow::Result<Plan> {
    let seq_len = header.config.seq_len;
    let max_seq = max_seq.unwrap_or(seq_len);
    if max_seq == 0 || max_seq > seq_len {
        return Err(Usage(format!("--plan max_seq={max_seq}: give 1 to {seq_len}, the model's seq_len")).into());
    }
    Ok(header.config.plan(Limits { max_seq, batch: 1, threads: 1, kv: kv.into() })?)
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

/// What firmware-example links for this plan, byte by byte, in its sections.
fn print_plan(out: &mut impl Write, plan: &Plan, model: usize, tokenizer: u64, prompt: u32) -> io::Result<()> {
    let Limits { max_seq, kv, .. } = plan.limits;
    let kv = if kv == KvType::I8 { "int8" } else { "f32" };
    let tokens = Tokenizer::max_tokens(prompt as usize) as u64;
    let scales = 4 * plan.kv_scales as u64;
    let align = align_of::<Aligned<u8>>() as u64;
    let flash = [
        (".model", "model file, to whole 16 bytes", (model as u64).next_multiple_of(align)),
        (".model", "tokenizer.bin beside it, the same", tokenizer.next_multiple_of(align)),
        (".rodata", "tokenizer index", plan.tokenizer_bytes()),
    ];
    let ram = [
        (".hot", "activations, f32", 4 * plan.hot_f32 as u64),
        (".hot", "activations, int8, to whole words", plan.hot_i8.next_multiple_of(4) as u64),
        (".hot", "sampler", plan.sampler_bytes()),
        (".cold", "keys and values", plan.kv_bytes() - scales),
        (".cold", "scales of keys and values", scales),
        (".cold", "tokens of the prompt", tokens * size_of::<u32>() as u64),
        (".cold", "merging of the prompt", tokens * size_of::<MergeSlot>() as u64),
    ];
    writeln!(out, "\nfirmware: max_seq {max_seq}, {kv} KV cache, prompts of up to {prompt} bytes")?;
    writeln!(out, "{:<8} {:<35} {:>12}", "section", "what", "bytes")?;
    for (total, rows) in [("flash", &flash[..]), ("RAM", &ram)] {
        for (section, name, bytes) in rows {
            writeln!(out, "{section:<8} {name:<35} {bytes:>12}")?;
        }
        let sum: u64 = rows.iter().map(|(_, _, bytes)| bytes).sum();
        writeln!(out, "{total:<8} {:<35} {sum:>12}", "in all, without code and stack")?;
    }
    Ok(())
}

/// The plan as constants of the preprocessor: the limits, and the bytes of each part of an infer_memory.
fn print_c(out: &mut impl Write, plan: &Plan, prompt: u32, model: &str) -> io::Result<()> {
    let kv = if plan.limits.kv == KvType::I8 { "I8" } else { "F32" };
    let scales = 4 * plan.kv_scales as u64;
    let merge = Tokenizer::max_tokens(prompt as usize) * size_of::<MergeSlot>();
    writeln!(
        out,
        "// Limits and memory of {model}, from infer-cli inspect --c: infer_init refuses them for a larger model."
    )?;
    writeln!(out, "#define MODEL_MAX_SEQ {}", plan.limits.max_seq)?;
    writeln!(out, "#define MODEL_PROMPT_BYTES {prompt}")?;
    writeln!(out, "#define MODEL_KV INFER_KV_{kv}")?;
    for (part, bytes) in [
        ("HOT_F32", 4 * plan.hot_f32 as u64),
        ("HOT_I8", plan.hot_i8 as u64),
        ("KV_VALUES", plan.kv_bytes() - scales),
        ("KV_SCALES", scales),
        ("SAMPLER", plan.sampler_bytes()),
        ("TOKENIZER", plan.tokenizer_bytes()),
        ("MERGE", merge as u64),
    ] {
        writeln!(out, "#define MODEL_{part}_BYTES {bytes}")?;
    }
    Ok(())
}
