//! GGUF files of the llama architecture, as llama.cpp's converters write them.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use infer_core::format::TensorName;
use infer_core::{Config, Rope, RopeScaling};

use crate::io::foreign::Values;
use crate::io::import::file::Input;
use crate::io::import::gguf_header::{self, FREQ_CIS_IMAG, FREQ_CIS_REAL, Header};
use crate::io::import::gguf_vocabulary;
use crate::io::import::model::{Hints, Model, seq_len};
use crate::io::import::tensors::Table;
use crate::io::import::vocabulary::Words;
use crate::io::import::weights::{Names, Weights};
use crate::io::rotary::TABLES;

/// The tensor of rotary factors, one per pair, that stands for Llama 3's scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Opens a file.
///
/// # Errors
/// The file is damaged, or of another architecture.
pub fn open(path: &Path, hints: &Hints) -> anyhow::Result<Model> {
    let (header, table) = gguf_header::read(Input::open(path)?)?;
    let config = config(&header, &table, hints)?;
    let tables = rotary_tables(&header, &config)?;
    let weights = Weights::new(vec![table], NAMES, config)?;
    Ok(Model { config: weights.config(), eos: None, values: Box::new(Tensors { weights, tables }) })
}

/// The weights of a file, and the rotary tables that `trainer export` has put beside them.
struct Tensors {
    weights: Weights,
    tables: Vec<(TensorName, Vec<f32>)>,
}

impl Values for Tensors {
    fn read(&self, name: TensorName, layer: usize) -> io::Result<Cow<'_, [f32]>> {
        self.weights.read(name, layer)
    }

    fn table(&self, name: TensorName) -> io::Result<Option<Vec<f32>>> {
        Ok(self.tables.iter().find(|table| table.0 == name).map(|table| table.1.clone()))
    }
}

/// The rotary tables of version 0 that are not those that are computed. They have a row for each
/// position that the model was taught.
fn rotary_tables(header: &Header, config: &Config) -> anyhow::Result<Vec<(TensorName, Vec<f32>)>> {
    let len = header.needed_size("llama.context_length")?.checked_mul(config.head_size() / 2);
    let mut tables = Vec::new();
    for (name, key) in TABLES.into_iter().zip([FREQ_CIS_REAL, FREQ_CIS_IMAG]) {
        let Some(table) = header.floats(key)? else { continue };
        ensure!(
            Some(table.len()) == len,
            "{key} has {} values, and not one per position and pair of a head: the file is damaged: export it again",
            table.len()
        );
        if let Some(i) = table.iter().position(|x| !x.is_finite()) {
            bail!("{key}: value {i} is not a finite number: the file is damaged: export it again");
        }
        tables.push((name, table.to_vec()));
    }
    Ok(tables)
}

/// The vocabulary of a file, which may have nothing else; `None` if it has none.
///
/// # Errors
/// The file is damaged, or its vocabulary is of a kind that is not known.
pub fn open_vocabulary(path: &Path) -> anyhow::Result<Option<Words>> {
    let (header, _) = gguf_header::read(Input::open(path)?)?;
    gguf_vocabulary::read(&header)
}

// wq and wk are in llama2.c's order: the converters bring Hugging Face's rows back into Meta's.
const NAMES: Names = Names {
    name: |name, layer| {
        let part = match name {
            TensorName::TokEmb => return "token_embd.weight".into(),
            TensorName::RmsFinal => return "output_norm.weight".into(),
            TensorName::Wcls => return "output.weight".into(),
            TensorName::RmsAtt => "attn_norm",
            TensorName::RmsFfn => "ffn_norm",
            TensorName::Wq => "attn_q",
            TensorName::Wk => "attn_k",
            TensorName::Wv => "attn_v",
            TensorName::Wo => "attn_output",
            TensorName::W1 => "ffn_gate",
            TensorName::W2 => "ffn_down",
            TensorName::W3 => "ffn_up",
            TensorName::FreqCisReal | TensorName::FreqCisImag => "", // not in version 1
        };
        format!("blk.{layer}.{part}.weight")
    },
    is_unneeded: |name| name == ROPE_FACTORS || name.ends_with(".attn_rot_embd.weight"),
    half_split: false,
};

fn config(header: &Header, table: &Table, hints: &Hints) -> anyhow::Result<Config> {
    let architecture = header.text("general.architecture")?.unwrap_or_default();
    ensure!(
        architecture == "llama",
        "general.architecture is {architecture:?}: only \"llama\" can be computed, which Mistral's models are, too"
    );
    let experts = header.size("llama.expert_count")?.unwrap_or(0);
    ensure!(experts == 0, "llama.expert_count is {experts}: mixtures of experts cannot be computed here");
    let embedding = table.get("token_embd.weight")?;
    let vocab_size = embedding.shape.first().copied().unwrap_or(0);
    let vocab_size =
        usize::try_from(vocab_size).ok().filter(|n| i32::try_from(*n).is_ok()).context("vocabulary too large")?;
    let (dim, n_heads) =
        (header.needed_size("llama.embedding_length")?, header.needed_size("llama.attention.head_count")?);
    let mut config = Config::new(
        dim,
        header.needed_size("llama.feed_forward_length")?,
        header.needed_size("llama.block_count")?,
        n_heads,
        vocab_size,
        seq_len(header.needed_size("llama.context_length")?, hints)?,
    );
    config.n_kv_heads = header.size("llama.attention.head_count_kv")?.unwrap_or(n_heads);
    config.shared_classifier = !table.has("output.weight");
    for field in ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"] {
        if let Some(size) = header.size(field)? {
            ensure!(
                size.checked_mul(n_heads) == Some(dim),
                "{field} is {size}: only the whole head, {dim} / {n_heads}, can be computed"
            );
        }
    }
    for field in ["llama.embedding_scale", "llama.residual_scale", "llama.logit_scale", "llama.attention.scale"] {
        let value = header.number(field)?;
        ensure!(
            value.is_none_or(|x| x == 1.0),
            "{field} is {}: a model with it cannot be computed here",
            value.unwrap_or(0.0)
        );
    }
    if let Some(window) = header.size("llama.attention.sliding_window")? {
        ensure!(
            window == 0 || window >= config.seq_len,
            "llama.attention.sliding_window is {window}, below the context of {}",
            config.seq_len
        );
    }
    if let Some(eps) = header.number("llama.attention.layer_norm_rms_epsilon")? {
        config = config.with_norm_eps(eps);
    }
    let config = config.with_rope(rope(header, table, &config)?);
    config.check()?;
    Ok(config)
}

fn rope(header: &Header, table: &Table, config: &Config) -> anyhow::Result<Rope> {
    let theta = header.number("llama.rope.freq_base")?.unwrap_or(Rope::LLAMA2.theta);
    let rope = Rope { theta, ..Rope::LLAMA2 };
    if table.has(ROPE_FACTORS) {
        let factors = table.read(table.get(ROPE_FACTORS)?)?;
        let original = header.size("llama.rope.scaling.original_context_length")?;
        return llama3(&rope, &factors, original, config.head_size());
    }
    // Files of the first versions have scale_linear.
    let factor = header.number("llama.rope.scaling.factor")?.or(header.number("llama.rope.scale_linear")?);
    let kind = header.text("llama.rope.scaling.type")?.unwrap_or(if factor.is_some() { "linear" } else { "none" });
    let scaling = match (kind, factor) {
        ("none", _) => RopeScaling::None,
        ("linear", Some(factor)) => RopeScaling::Linear { factor },
        ("linear", None) => bail!("llama.rope.scaling.factor is missing"),
        _ => bail!("llama.rope.scaling.type is {kind:?}: \"none\" and \"linear\" can be computed, and Llama 3's"),
    };
    Ok(Rope { scaling, ..rope })
}

/// The parameters of Llama 3's scaling that gives these factors: llama.cpp keeps the factors only.
fn llama3(rope: &Rope, factors: &[f32], original: Option<usize>, head_size: usize) -> anyhow::Result<Rope> {
    ensure!(factors.len() == head_size / 2, "{ROPE_FACTORS} has {} factors for heads of {head_size}", factors.len());
    let factor = factors.iter().copied().fold(1.0, f32::max);
    for original_seq_len in original.into_iter().chain([8192]) {
        let scaling = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len };
        let scaled = Rope { scaling, ..*rope };
        let same = |(i, told): (usize, &f32)| {
            let found = rope.frequency(i, head_size) / scaled.frequency(i, head_size);
            (found - told).abs() <= 1e-4 * told
        };
        if factors.iter().enumerate().all(same) {
            return Ok(scaled);
        }
    }
    bail!(
        "{ROPE_FACTORS} is not Llama 3's scaling by {factor} (low 1, high 4, first context {}): only that is known",
        original.unwrap_or(8192)
    )
}
