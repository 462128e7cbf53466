//! Shows the contents of a model file, and the memory that running it takes.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use infer_core::format::{Header, Layout, Tensor, Version};
use infer_core::{Aligned, Config, Error, KvType, Limits, MergeSlot, Plan, RopeScaling, Tokenizer, WeightType};
use infer_text::TOKENIZER_BIN;
use serde::Serialize;

use crate::args::PlanLimits;
use crate::session::Usage;
use crate::source::Source;

pub fn run(path: Option<&Path>, limits: PlanLimits, c: bool, json: bool) -> anyhow::Result<()> {
    let bytes = Source::model(path)?;
    let in_file = || bytes.name.clone();
    let header = Header::parse(&bytes).with_context(in_file)?;
    let layout = header.layout_of(bytes.len() as u64).with_context(in_file)?;
    let (need, have) = (layout.file_bytes, bytes.len() as u64);
    let mut out = io::stdout().lock();
    if !c && !json {
        print_header(&mut out, &header, bytes.len())?;
        print_tensors(&mut out, &layout)?;
    }
    if have < need {
        return Err(Error::Truncated { need, have }).with_context(in_file);
    }
    let plan = plan(&header, limits).with_context(in_file);
    if c {
        return Ok(print_c(&mut out, &plan?, limits.prompt, &bytes.name)?);
    }
    let tokenizer = match path {
        Some(path) => std::fs::metadata(path.with_file_name(TOKENIZER_BIN)).map_or(0, |file| file.len()),
        None => Source::tokenizer(None)?.len() as u64,
    };
    if json {
        let memory = Memory::new(&plan?, bytes.len(), tokenizer, limits.prompt);
        writeln!(out, "{}", serde_json::to_string(&Report::new(&header, &layout, have, memory))?)?;
        return Ok(());
    }
    writeln!(out, "{:<14} {need:>40}", "end")?;
    if have > need {
        writeln!(out, "{:<14} {:>40} (ignored)", "after the end", have - need)?;
    }
    Ok(print_memory(&mut out, &Memory::new(&plan?, bytes.len(), tokenizer, limits.prompt))?)
}

/// The JSON object.
#[derive(Serialize)]
struct Report {
    version: u32,
    weights: &'static str,
    group_size: Option<usize>,
    file_bytes: u64,
    /// Bytes behind the last tensor.
    ignored_bytes: u64,
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocab_size: usize,
    seq_len: usize,
    shared_classifier: bool,
    rope_theta: f32,
    rope_scaling: Option<Scaling>,
    norm_eps: f32,
    bos: Vec<u32>,
    eos: Vec<u32>,
    template: Option<String>,
    tensors: Vec<TensorReport>,
    firmware: Memory,
}

/// [`RopeScaling`] in the words of Hugging Face's config.json.
#[derive(Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
enum Scaling {
    Linear { factor: f32 },
    Llama3 { factor: f32, low_freq_factor: f32, high_freq_factor: f32, original_max_position_embeddings: usize },
}

impl Scaling {
    fn new(scaling: RopeScaling) -> Option<Scaling> {
        match scaling {
            RopeScaling::Linear { factor } => Some(Scaling::Linear { factor }),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len } => {
                let original_max_position_embeddings = original_seq_len;
                Some(Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
            }
            _ => None,
        }
    }
}

#[derive(Serialize)]
struct TensorReport {
    name: &'static str,
    count: usize,
    rows: usize,
    cols: usize,
    #[serde(rename = "type")]
    weights: &'static str,
    offset: u64,
    bytes: u64,
}

impl Report {
    fn new(header: &Header, layout: &Layout, file_bytes: u64, firmware: Memory) -> Report {
        let c = &header.config;
        let tensor = |t: Tensor| TensorReport {
            name: t.name.as_str(),
            count: t.count,
            rows: t.rows,
            cols: t.cols,
            weights: type_name(t.weights),
            offset: t.offset,
            bytes: t.bytes(),
        };
        Report {
            version: version(header),
            weights: type_name(c.weights),
            group_size: match c.weights {
                WeightType::F32 => None,
                WeightType::Q8 { group_size } => Some(group_size),
            },
            file_bytes,
            ignored_bytes: file_bytes - layout.file_bytes,
            dim: c.dim,
            hidden_dim: c.hidden_dim,
            n_layers: c.n_layers,
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            vocab_size: c.vocab_size,
            seq_len: c.seq_len,
            shared_classifier: c.shared_classifier,
            rope_theta: c.rope.theta,
            rope_scaling: Scaling::new(c.rope.scaling),
            norm_eps: c.norm_eps,
            bos: header.tokens.bos().to_vec(),
            eos: header.tokens.eos().to_vec(),
            template: Some(header.template.as_str()).filter(|name| !name.is_empty()).map(str::to_owned),
            tensors: layout.iter().map(tensor).collect(),
            firmware,
        }
    }
}

fn version(header: &Header) -> u32 {
    match header.version {
        Version::V0 => 0,
        Version::V1 => 1,
        Version::V2 => 2,
    }
}

fn type_name(weights: WeightType) -> &'static str {
    match weights {
        WeightType::F32 => "f32",
        WeightType::Q8 { .. } => "int8",
    }
}

fn plan(header: &Header, PlanLimits { max_seq, kv, .. }: PlanLimits) -> anyhow::Result<Plan> {
    let seq_len = header.config.seq_len;
    let max_seq = max_seq.unwrap_or(seq_len);
    if max_seq == 0 || max_seq > seq_len {
        return Err(Usage(format!("--plan max_seq={max_seq}: give 1 to {seq_len}, the model's seq_len")).into());
    }
    Ok(header.config.plan(Limits::new(max_seq).with_kv(kv.into()))?)
}

fn print_header(out: &mut impl Write, header: &Header, file_bytes: usize) -> io::Result<()> {
    let c = &header.config;
    let weights = match c.weights {
        WeightType::F32 => "f32".to_owned(),
        WeightType::Q8 { group_size } => format!("int8, group size {group_size}"),
    };
    writeln!(out, "version        {} ({weights})", version(header))?;
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
    writeln!(out, "classifier     {}", if c.shared_classifier { "shared with tok_emb" } else { "its own (wcls)" })?;
    if header.is_plain() { Ok(()) } else { print_extension(out, header) }
}

/// What llama2.c's header has no field for.
fn print_extension(out: &mut impl Write, header: &Header) -> io::Result<()> {
    let Config { rope, norm_eps, .. } = header.config;
    let scaling = match Scaling::new(rope.scaling) {
        None => "not scaled".to_owned(),
        Some(Scaling::Linear { factor }) => format!("scaled linearly by {factor}"),
        Some(Scaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: n,
        }) => format!("scaled as Llama 3's by {factor} (frequency factors {low} and {high}, {n} positions)"),
    };
    let ids = |tokens: &[u32]| match tokens {
        [] => "none".to_owned(),
        _ => tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
    };
    writeln!(out, "rotary base    {}, {scaling}", rope.theta)?;
    writeln!(out, "norm epsilon   {norm_eps:e}")?;
    writeln!(out, "BOS            {}", ids(header.tokens.bos()))?;
    writeln!(out, "EOS            {}", ids(header.tokens.eos()))?;
    let template = header.template.as_str();
    writeln!(out, "template       {}", if template.is_empty() { "none" } else { template })
}

fn print_tensors(out: &mut impl Write, layout: &Layout) -> io::Result<()> {
    writeln!(
        out,
        "\n{:<14} {:>5} {:>16} {:>4} {:>11} {:>12}",
        "tensor", "count", "rows x cols", "type", "offset", "bytes"
    )?;
    for tensor in layout.iter() {
        let shape = format!("{} x {}", tensor.rows, tensor.cols);
        let weights = type_name(tensor.weights);
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

/// The bytes that firmware-example links for a plan, by section.
#[derive(Serialize)]
struct Memory {
    max_seq: usize,
    kv: &'static str,
    prompt_bytes: u32,
    flash_bytes: u64,
    ram_bytes: u64,
    flash: Vec<Part>,
    ram: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    section: &'static str,
    what: &'static str,
    bytes: u64,
}

impl Memory {
    fn new(plan: &Plan, model: usize, tokenizer: u64, prompt: u32) -> Memory {
        let tokens = Tokenizer::max_tokens(prompt as usize) as u64;
        let scales = 4 * plan.kv_scales as u64;
        let align = align_of::<Aligned<u8>>() as u64;
        let part = |section, what, bytes| Part { section, what, bytes };
        let flash = vec![
            part(".model", "model file, to whole 16 bytes", (model as u64).next_multiple_of(align)),
            part(".model", "tokenizer.bin beside it, the same", tokenizer.next_multiple_of(align)),
            part(".rodata", "tokenizer index", plan.tokenizer_bytes()),
        ];
        let ram = vec![
            part(".hot", "activations, f32", 4 * plan.hot_f32 as u64),
            part(".hot", "activations, int8, to whole words", plan.hot_i8.next_multiple_of(4) as u64),
            part(".hot", "sampler", plan.sampler_bytes()),
            part(".cold", "keys and values", plan.kv_bytes() - scales),
            part(".cold", "scales of keys and values", scales),
            part(".cold", "tokens of the prompt", tokens * size_of::<u32>() as u64),
            part(".cold", "merging of the prompt", tokens * size_of::<MergeSlot>() as u64),
        ];
        let sum = |parts: &[Part]| parts.iter().map(|part| part.bytes).sum();
        Memory {
            max_seq: plan.limits.max_seq,
            kv: if plan.limits.kv == KvType::Q8 { "int8" } else { "f32" },
            prompt_bytes: prompt,
            flash_bytes: sum(&flash),
            ram_bytes: sum(&ram),
            flash,
            ram,
        }
    }
}

fn print_memory(out: &mut impl Write, memory: &Memory) -> io::Result<()> {
    let Memory { max_seq, kv, prompt_bytes, .. } = memory;
    writeln!(out, "\nfirmware: max_seq {max_seq}, {kv} KV cache, prompts of up to {prompt_bytes} bytes")?;
    writeln!(out, "{:<8} {:<35} {:>12}", "section", "what", "bytes")?;
    for (total, parts, sum) in [("flash", &memory.flash, memory.flash_bytes), ("RAM", &memory.ram, memory.ram_bytes)] {
        for Part { section, what, bytes } in parts {
            writeln!(out, "{section:<8} {what:<35} {bytes:>12}")?;
        }
        writeln!(out, "{total:<8} {:<35} {sum:>12}", "in all, without code and stack")?;
    }
    Ok(())
}

/// The plan as constants of the preprocessor: the limits, and the bytes of each part of an
/// infer_memory.
fn print_c(out: &mut impl Write, plan: &Plan, prompt: u32, model: &str) -> io::Result<()> {
    let kv = if plan.limits.kv == KvType::Q8 { "I8" } else { "F32" };
    let scales = 4 * plan.kv_scales as u64;
    let merge = Tokenizer::max_tokens(prompt as usize) * size_of::<MergeSlot>();
    writeln!(
        out,
        "// Limits and memory of {model}, from infer-cli inspect --c.\n// infer_init refuses them for a larger model."
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
