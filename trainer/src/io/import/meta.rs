//! Folders of Meta's models: params.json and one file of weights, or several parts of it that were
//! made for as many GPUs. Also single files in Meta's layout, and checkpoints of llama2.c.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use infer_core::format::TensorName;
use infer_core::{Config, Rope, RopeScaling};

use crate::io::import::file::Fields;
use crate::io::import::model::{Hints, Model, seq_len};
use crate::io::import::pytorch::{self, Checkpoint};
use crate::io::import::tensors::Table;
use crate::io::import::weights::{Names, Weights};

/// The configuration of a folder.
pub const PARAMS: &str = "params.json";
/// Positions of a model whose files do not tell, as in llama2.c's exporter.
const SEQ_LEN: usize = 2048;

/// Opens a folder.
///
/// # Errors
/// The model computes something else than Llama 2 and 3, or a file is missing or damaged.
pub fn open(folder: &Path, hints: &Hints) -> anyhow::Result<Model> {
    let name = |part: usize| folder.join(format!("consolidated.{part:02}.pth"));
    let paths: Vec<PathBuf> = (0..100).map(name).take_while(|path| path.exists()).collect();
    ensure!(!paths.is_empty(), "{} has no consolidated.00.pth", folder.display());
    let entries = std::fs::read_dir(folder)?.filter_map(Result::ok);
    let is_part = |name: &str| name.starts_with("consolidated.") && name.ends_with(".pth");
    let there = entries.filter(|entry| is_part(&entry.file_name().to_string_lossy())).count();
    ensure!(
        there == paths.len(),
        "{} has {there} files consolidated.*.pth, but {} is missing",
        folder.display(),
        name(paths.len()).display()
    );
    let parts = paths.iter().map(|path| Ok(pytorch::open(path)?.table)).collect::<anyhow::Result<_>>()?;
    let params = hints.params.clone().unwrap_or_else(|| folder.join(PARAMS));
    model(parts, Params::of_file(&Fields::read(&params)?)?, hints)
}

/// Opens a single file: a checkpoint of llama2.c, or one in Meta's layout.
///
/// # Errors
/// As [`open`].
pub fn open_file(path: &Path, hints: &Hints) -> anyhow::Result<Model> {
    let Checkpoint { table, model_args } = pytorch::open(path)?;
    let beside = path.with_file_name(PARAMS);
    let params = match (&hints.params, model_args) {
        (Some(params), _) => Params::of_file(&Fields::read(params)?)?,
        (None, Some(args)) => Params::of_llama2c(&args).with_context(|| format!("{}: model_args", path.display()))?,
        (None, None) if beside.exists() => Params::of_file(&Fields::read(&beside)?)?,
        (None, None) => Params::default(),
    };
    model(vec![table], params, hints).with_context(|| path.display().to_string())
}

const NAMES: Names = Names {
    name: |name, layer| {
        let part = match name {
            TensorName::TokEmb => return "tok_embeddings.weight".into(),
            TensorName::RmsFinal => return "norm.weight".into(),
            TensorName::Wcls => return "output.weight".into(),
            TensorName::RmsAtt => "attention_norm",
            TensorName::RmsFfn => "ffn_norm",
            TensorName::Wq => "attention.wq",
            TensorName::Wk => "attention.wk",
            TensorName::Wv => "attention.wv",
            TensorName::Wo => "attention.wo",
            TensorName::W1 => "feed_forward.w1",
            TensorName::W2 => "feed_forward.w2",
            TensorName::W3 => "feed_forward.w3",
            TensorName::FreqCisReal | TensorName::FreqCisImag => "", // not in version 1
        };
        format!("layers.{layer}.{part}.weight")
    },
    is_unneeded: |name| {
        name.starts_with("freqs_")
            || name.ends_with(".mask")
            || name.ends_with("rope.freqs")
            || name.ends_with("_cache")
    },
    half_split: false,
};

/// What the files say beside the shapes of tensors.
#[derive(Default)]
struct Params {
    dim: Option<usize>,
    n_layers: Option<usize>,
    n_heads: Option<usize>,
    n_kv_heads: Option<usize>,
    seq_len: Option<usize>,
    norm_eps: Option<f32>,
    rope: Option<Rope>,
    /// Positions that attention reaches back, in Mistral's files.
    sliding_window: Option<usize>,
}

impl Params {
    /// Reads a params.json.
    fn of_file(fields: &Fields) -> anyhow::Result<Params> {
        for field in ["moe", "num_experts", "quantization_args", "lora_args", "vision_chunk_size"] {
            ensure!(fields.get(field).is_none(), "{}: {field}: a model with it cannot be computed here", fields.name);
        }
        if let (Some(head_dim), Some(n_heads)) = (fields.size("head_dim")?, fields.size("n_heads")?) {
            let dim = fields.needed_size("dim")?;
            ensure!(
                head_dim.checked_mul(n_heads) == Some(dim),
                "{}: head_dim is {head_dim}: only dim / n_heads, {dim} / {n_heads}, can be computed",
                fields.name
            );
        }
        let mut rope = Rope { theta: fields.number("rope_theta")?.unwrap_or(Rope::LLAMA2.theta), ..Rope::LLAMA2 };
        if fields.get("use_scaled_rope").is_some_and(|scaled| scaled == true) {
            // Meta's code has these values, and params.json tells only other ones.
            rope.scaling = RopeScaling::Llama3 {
                factor: fields.number("rope_scaling_factor")?.unwrap_or(8.0),
                low_freq_factor: 1.0,
                high_freq_factor: fields.number("rope_high_freq_factor")?.unwrap_or(4.0),
                original_seq_len: 8192,
            };
        }
        Ok(Params {
            dim: fields.size("dim")?,
            n_layers: fields.size("n_layers")?,
            n_heads: fields.size("n_heads")?,
            n_kv_heads: fields.size("n_kv_heads")?,
            seq_len: fields.size("max_seq_len")?,
            norm_eps: fields.number("norm_eps")?,
            rope: Some(rope),
            sliding_window: fields.size("sliding_window")?,
        })
    }

    /// Takes the arguments that llama2.c's train.py made a model with.
    fn of_llama2c(args: &HashMap<String, f64>) -> anyhow::Result<Params> {
        let size = |name: &str| match args.get(name) {
            None => Ok(None),
            Some(&n) if n >= 0.0 && n <= f64::from(i32::MAX) && n.fract() == 0.0 => Ok(Some(n as usize)),
            Some(n) => Err(anyhow!("{name} is {n}: it must be a whole number from 0 to 2^31 − 1")),
        };
        Ok(Params {
            dim: size("dim")?,
            n_layers: size("n_layers")?,
            n_heads: size("n_heads")?,
            n_kv_heads: size("n_kv_heads")?,
            seq_len: size("max_seq_len")?,
            norm_eps: args.get("norm_eps").map(|eps| *eps as f32),
            rope: None,
            sliding_window: None,
        })
    }
}

fn model(parts: Vec<Table>, params: Params, hints: &Hints) -> anyhow::Result<Model> {
    let config = config(&parts, &params, hints)?;
    let weights = Weights::new(parts, NAMES, config)?;
    Ok(Model { config: weights.config(), eos: None, values: Box::new(weights) })
}

/// The configuration: sizes come from the shapes of tensors, as params.json has no hidden_dim and
/// may say vocab_size −1.
fn config(parts: &[Table], params: &Params, hints: &Hints) -> anyhow::Result<Config> {
    let (first, n) = (&parts[0], parts.len() as u64);
    let shape = |name: &str| match first.get(name)?.shape[..] {
        [rows, cols] => Ok((rows, cols)),
        ref shape => bail!("tensor {name} has the shape {shape:?}: it is no matrix"),
    };
    let size =
        |size: u64| usize::try_from(size).ok().filter(|&n| n <= i32::MAX as usize).context("a size is too large");
    // wo is cut by columns: its rows are the whole width, in any number of parts.
    let (dim, _) = shape("layers.0.attention.wo.weight")?;
    let (embeddings, width) = shape("tok_embeddings.weight")?;
    let vocab_size =
        if width == dim && n > 1 { embeddings.checked_mul(n).context("a size is too large")? } else { embeddings };
    let hidden_dim = shape("layers.0.feed_forward.w1.weight")?.0.checked_mul(n).context("a size is too large")?;
    let kv_dim = shape("layers.0.attention.wk.weight")?.0.checked_mul(n).context("a size is too large")?;
    let n_layers = (0..).take_while(|layer| first.has(&(NAMES.name)(TensorName::RmsAtt, *layer))).count();
    let dim = size(dim)?;
    for (field, told, found) in [("dim", params.dim, dim), ("n_layers", params.n_layers, n_layers)] {
        ensure!(
            told.is_none_or(|told| told == found),
            "{field} is {}, and the tensors have {found}",
            told.unwrap_or(0)
        );
    }
    let n_heads = params.n_heads.or(hints.n_heads);
    let n_heads = n_heads.context("nothing tells the number of heads: give --params FILE.json, or --n-heads N")?;
    let head_size = dim.checked_div(n_heads).filter(|&size| size > 0);
    let head_size = head_size.with_context(|| format!("n_heads is {n_heads}, and dim {dim}"))?;
    let n_kv_heads = size(kv_dim)? / head_size;
    if let Some(told) = params.n_kv_heads {
        ensure!(told == n_kv_heads, "n_kv_heads is {told}, and wk has {kv_dim} rows for heads of {head_size}");
    }
    let seq_len = match params.seq_len {
        Some(taught) => seq_len(taught, hints)?,
        None => hints.max_seq_len.unwrap_or(SEQ_LEN),
    };
    if let Some(window) = params.sliding_window {
        ensure!(
            window >= seq_len,
            "sliding_window is {window}, below the context of {seq_len}: give --max-seq-len {window} for a model of that \
             context"
        );
    }
    let mut config = Config::new(dim, size(hidden_dim)?, n_layers, n_heads, size(vocab_size)?, seq_len)
        .with_kv_heads(n_kv_heads)
        .with_norm_eps(params.norm_eps.unwrap_or(1e-5))
        .with_rope(params.rope.unwrap_or(Rope::LLAMA2));
    config.shared_classifier = !first.has("output.weight");
    config.check()?;
    Ok(config)
}
