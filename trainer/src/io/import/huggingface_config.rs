//! What a config.json of Hugging Face says about the maths of a model, and whether infer-core does
//! the same.

use anyhow::{Context, bail, ensure};
use infer_core::{Config, Rope, RopeScaling};
use serde_json::Value;

use crate::io::import::file::Fields;
use crate::io::import::model::{Hints, seq_len};

/// Architectures whose classes read the fields below, and ignore others.
const LLAMAS: [&str; 2] = ["llama", "mistral"];

/// Fields of other models that change nothing of what is computed when a text is read.
const HARMLESS: [&str; 33] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "bos_token",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "eos_token",
    "hidden_dropout",
    "initializer_range",
    "is_llama_config",
    "max_length",
    "model_type",
    "attn_implementation",
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_flash_attn",
    "use_flash_attention",
    "rope_interleaved",
    "max_window_layers",
    "use_sliding_window",
    "layer_types",
    "vocab_size",
];

/// Fields that are read, or must have the value that Llama has.
const CHECKED: [&str; 13] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "hidden_act",
    "sliding_window",
];

/// Fields of a wider family, with the value that leaves the maths of Llama as it is.
const NEUTRAL: [(&str, Neutral); 17] = [
    ("attention_bias", Neutral::False),
    ("mlp_bias", Neutral::False),
    ("use_bias", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("use_qk_norm", Neutral::False),
    ("clip_qkv", Neutral::Absent),
    ("attn_logit_softcapping", Neutral::Absent),
    ("final_logit_softcapping", Neutral::Absent),
    ("quantization_config", Neutral::Absent),
    ("num_local_experts", Neutral::Zero),
    ("num_experts", Neutral::Zero),
    ("n_routed_experts", Neutral::Zero),
    ("partial_rotary_factor", Neutral::One),
    ("embedding_multiplier", Neutral::One),
    ("residual_multiplier", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("logit_scale", Neutral::One),
];

enum Neutral {
    Absent,
    False,
    Zero,
    One,
}

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match self {
            Neutral::Absent => false,
            Neutral::False => value == false,
            Neutral::Zero => value.as_f64() == Some(0.0),
            Neutral::One => value.as_f64() == Some(1.0),
        }
    }
}

/// The configuration of a model. It says nothing about the classifier yet.
///
/// # Errors
/// Names the field, and its value, that asks for something which infer-core does not compute.
pub fn read(fields: &Fields, hints: &Hints) -> anyhow::Result<Config> {
    check_maths(fields)?;
    let dim = fields.needed_size("hidden_size")?;
    let n_heads = fields.needed_size("num_attention_heads")?;
    let taught = fields.needed_size("max_position_embeddings")?;
    let seq_len =
        seq_len(taught, hints).with_context(|| format!("{}: max_position_embeddings is {taught}", fields.name))?;
    let config = Config::new(
        dim,
        fields.needed_size("intermediate_size")?,
        fields.needed_size("num_hidden_layers")?,
        n_heads,
        fields.needed_size("vocab_size")?,
        seq_len,
    );
    let config = config.with_kv_heads(fields.size("num_key_value_heads")?.unwrap_or(n_heads));
    if let Some(head_dim) = fields.size("head_dim")? {
        ensure!(
            head_dim.checked_mul(n_heads) == Some(dim),
            "{}: head_dim is {head_dim}: only hidden_size / num_attention_heads, {dim} / {n_heads}, can be computed",
            fields.name
        );
    }
    let uses_window = fields.get("use_sliding_window").is_none_or(|used| used == true);
    if let Some(window) = fields.size("sliding_window")? {
        ensure!(
            !uses_window || window >= seq_len,
            "{}: sliding_window is {window}, below the context of {seq_len}, and attention to the last {window} \
             positions only cannot be computed: give --max-seq-len {window} for a model of that context",
            fields.name
        );
    }
    let config = config.with_norm_eps(fields.number("rms_norm_eps")?.unwrap_or(1e-6)).with_rope(rope(fields)?);
    config.check()?;
    Ok(config)
}

fn check_maths(fields: &Fields) -> anyhow::Result<()> {
    let name = &fields.name;
    let is_llama = fields.text("model_type")?.is_some_and(|model| LLAMAS.contains(&model));
    for (field, neutral) in NEUTRAL {
        if let Some(value) = fields.get(field).filter(|value| !neutral.is(value)) {
            bail!("{name}: {field} is {}: a model with it cannot be computed here", short(value));
        }
    }
    if let Some(act) = fields.text("hidden_act")? {
        ensure!(matches!(act, "silu" | "swish"), "{name}: hidden_act is {act:?}: only \"silu\" can be computed");
    }
    if fields.get("rope_interleaved").is_some_and(|interleaved| interleaved == true) {
        bail!("{name}: rope_interleaved is true: files of this format are read with half-split heads");
    }
    let layers = fields.get("layer_types").and_then(Value::as_array).into_iter().flatten();
    for layer in layers {
        ensure!(
            layer == "full_attention",
            "{name}: layer_types has {}: only \"full_attention\" can be computed",
            short(layer)
        );
    }
    for field in fields.names() {
        let known =
            HARMLESS.contains(&field) || CHECKED.contains(&field) || NEUTRAL.iter().any(|(known, _)| *known == field);
        if let (false, false, Some(value)) = (is_llama, known, fields.get(field)) {
            bail!(
                "{name}: model_type is {}, and {field} is {}: whether that changes the maths is not known",
                fields.get("model_type").map_or("not there".into(), short),
                short(value)
            );
        }
    }
    Ok(())
}

/// The rotary angles: `rope_theta` and `rope_scaling`, or since transformers 5 `rope_parameters`.
fn rope(fields: &Fields) -> anyhow::Result<Rope> {
    let scaling = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let theta = scaling.as_ref().map(|scaling| scaling.number("rope_theta")).transpose()?.flatten();
    let theta = theta.or(fields.number("rope_theta")?).unwrap_or(Rope::LLAMA2.theta);
    let rope = Rope { theta, ..Rope::LLAMA2 };
    let Some(scaling) = scaling else { return Ok(rope) };
    // "type" is the older name.
    let kind = scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: scaling.needed_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.needed_number("factor")?,
            low_freq_factor: scaling.needed_number("low_freq_factor")?,
            high_freq_factor: scaling.needed_number("high_freq_factor")?,
            original_seq_len: scaling.needed_size("original_max_position_embeddings")?,
        },
        other => {
            bail!("{}: rope_type is {other:?}: \"default\", \"linear\" and \"llama3\" can be computed", scaling.name)
        }
    };
    Ok(Rope { scaling, ..rope })
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
