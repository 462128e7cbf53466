//! Writes folders as transformers reads them: config.json, model.safetensors, the tokenizer, and a
//! model card.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use infer_core::RopeScaling;
use infer_core::format::{Header, TensorName};
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::{Map, Value, json};

use crate::io::export::job::Job;
use crate::io::export::pieces;
use crate::io::export::tensor_type::TensorType;
use crate::io::export::tokenizer_json::tokenizer_json;
use crate::io::tensors::{Shape, shapes};
use crate::io::vocabulary::Vocabulary;

/// Writes the files of a model into a folder that is there.
///
/// # Errors
/// A vocabulary that tokenizer.json cannot hold, a weight that is too
/// large for the type, and errors of the reader and the writer.
pub fn write(folder: &Path, job: &Job) -> anyhow::Result<()> {
    let put = |name: &str, text: &str| fs::write(folder.join(name), text).with_context(|| name.to_owned());
    let json = |value: &Value| format!("{value:#}\n");
    let tokenizer = tokenizer(job.vocabulary, job.parts.header)?;
    put("config.json", &json(&config(job.parts.header, job.tensor_type)?))?;
    put("generation_config.json", &json(&generation_config(job.parts.header)))?;
    put("tokenizer.json", &tokenizer)?;
    put("tokenizer_config.json", &json(&tokenizer_config(job, &tokenizer)?))?;
    put("README.md", &model_card(job.parts.header, job.name))?;
    tensors(&folder.join("model.safetensors"), job)
}

fn tokenizer(vocabulary: &Vocabulary, header: &Header) -> anyhow::Result<String> {
    match vocabulary {
        Vocabulary::Bin(bytes) => {
            let pieces = pieces::read(bytes, header.config.vocab_size).context("tokenizer.bin")?;
            tokenizer_json(&pieces, header.tokens.bos())
        }
        Vocabulary::Json(bytes) => String::from_utf8(bytes.clone()).context("tokenizer.json"),
    }
}

/// The hyperparameters, in the names that transformers has had for Llama from the beginning: its
/// newest versions read them too.
fn config(header: &Header, kind: TensorType) -> anyhow::Result<Value> {
    let c = &header.config;
    let scaling = match c.rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_seq_len,
        }),
        other => bail!("config.json has no name for the RoPE scaling {other:?}"),
    };
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "mlp_bias": false,
        "hidden_act": "silu",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_size(),
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.seq_len,
        "rms_norm_eps": shortest(c.norm_eps),
        "rope_theta": c.rope.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": c.shared_classifier,
        "torch_dtype": match kind {
            TensorType::F16 => "float16",
            TensorType::Bf16 => "bfloat16",
            TensorType::F32 | TensorType::Q8_0 => "float32",
        },
        "use_cache": true,
    });
    add_token_ids(&mut config, header);
    Ok(config)
}

/// What ends a text: transformers looks here before it looks into config.json.
fn generation_config(header: &Header) -> Value {
    let mut config = Value::Object(Map::new());
    add_token_ids(&mut config, header);
    config
}

fn add_token_ids(config: &mut Value, header: &Header) {
    config["bos_token_id"] = header.tokens.bos().first().copied().into();
    config["eos_token_id"] = match header.tokens.eos() {
        [one] => (*one).into(),
        several => several.into(),
    };
}

/// An f32 as f64 with the same shortest decimal: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn tokenizer_config(job: &Job, tokenizer: &str) -> anyhow::Result<Value> {
    let tokens = job.parts.header.tokens;
    let tokenizer: Value = serde_json::from_str(tokenizer).context("tokenizer.json")?;
    let name = |id: Option<&u32>| match id {
        Some(&id) => token_text(&tokenizer, id),
        None => Value::Null,
    };
    let mut config = json!({
        // The class that takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name(tokens.bos().first()),
        "eos_token": name(tokens.eos().last()), // the first ends a text, the last an answer
        "unk_token": tokenizer["model"]["unk_token"],
        "clean_up_tokenization_spaces": false,
        "model_max_length": job.parts.header.config.seq_len,
    });
    if let Some(template) = job.parts.template {
        config["chat_template"] = template.into();
    }
    Ok(config)
}

/// The text of a token in a tokenizer.json.
fn token_text(tokenizer: &Value, id: u32) -> Value {
    let is = |value: &Value| value.as_u64() == Some(id.into());
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten().find(|token| is(&token["id"]));
    let in_vocab =
        || tokenizer["model"]["vocab"].as_object()?.iter().find(|(_, value)| is(value)).map(|(text, _)| text);
    match added {
        Some(token) => token["content"].clone(),
        None => in_vocab().map_or(Value::Null, |text| text.as_str().into()),
    }
}

fn model_card(header: &Header, name: &str) -> String {
    let c = &header.config;
    let numbers = [
        ("dim", c.dim),
        ("hidden_dim", c.hidden_dim),
        ("layers", c.n_layers),
        ("heads", c.n_heads),
        ("heads of keys and values", c.n_kv_heads),
        ("tokens of the vocabulary", c.vocab_size),
        ("tokens of context", c.seq_len),
    ];
    let rows: String = numbers.iter().map(|(what, n)| format!("| {what} | {n} |\n")).collect();
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n\nA language model of the \
         Llama architecture.\n\n| | |\n|---|---|\n{rows}\n```python\n{USE}```\n"
    )
}

/// How to tell a text with the model.
const USE: &str = r#"from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
tokens = tokenizer("One day", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=100)[0]))
"#;

/// Writes model.safetensors. The library asks for one tensor after the other.
fn tensors(path: &Path, job: &Job) -> anyhow::Result<()> {
    let failure = RefCell::new(None);
    let config = &job.parts.header.config;
    let stored = shapes(config)?.into_iter().map(|of| {
        let shape = if of.is_norm() { vec![of.cols] } else { vec![of.rows, of.cols] };
        let heads = match of.name {
            TensorName::Wq => Some(config.n_heads),
            TensorName::Wk => Some(config.n_kv_heads),
            _ => None,
        };
        (tensor_name(of.name, of.layer), Stored { job, of, heads, shape, failure: &failure })
    });
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let written = serialize_to_file(stored, Some(format), path);
    if let Some((name, e)) = failure.into_inner() {
        return Err(anyhow!(e).context(format!("tensor {name}")));
    }
    written.context("model.safetensors")?;
    #[cfg(unix)] // readable for all, as other new files; the library makes it private
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(())
}

fn tensor_name(name: TensorName, layer: usize) -> String {
    let of_layer = match name {
        TensorName::TokEmb => return "model.embed_tokens.weight".into(),
        TensorName::RmsFinal => return "model.norm.weight".into(),
        TensorName::Wcls => return "lm_head.weight".into(),
        TensorName::RmsAtt => "input_layernorm",
        TensorName::Wq => "self_attn.q_proj",
        TensorName::Wk => "self_attn.k_proj",
        TensorName::Wv => "self_attn.v_proj",
        TensorName::Wo => "self_attn.o_proj",
        TensorName::RmsFfn => "post_attention_layernorm",
        TensorName::W1 => "mlp.gate_proj",
        TensorName::W2 => "mlp.down_proj",
        TensorName::W3 => "mlp.up_proj",
        TensorName::FreqCisReal | TensorName::FreqCisImag => "rope", // not among the shapes
    };
    format!("model.layers.{layer}.{of_layer}.weight")
}

/// A tensor of the file, whose values are read when the library writes them.
struct Stored<'a> {
    job: &'a Job<'a>,
    of: Shape,
    /// Heads of wq or wk, the rows of which have another order at transformers.
    heads: Option<usize>,
    shape: Vec<usize>,
    /// The first error: the library's trait has no place for one.
    failure: &'a RefCell<Option<(String, io::Error)>>,
}

impl Stored<'_> {
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let Shape { name, layer, cols, .. } = self.of;
        let mut values = self.job.parts.values.read(name, layer)?;
        if let Some(heads) = self.heads {
            values = Cow::Owned(halves(&values, heads, cols));
        }
        let mut bytes = Vec::with_capacity(self.data_len());
        self.job.tensor_type.write(&mut bytes, &values)?;
        Ok(bytes)
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.job.tensor_type {
            TensorType::F16 => Dtype::F16,
            TensorType::Bf16 => Dtype::BF16,
            TensorType::F32 | TensorType::Q8_0 => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = if self.failure.borrow().is_none() { self.bytes() } else { Ok(Vec::new()) };
        bytes.map_or_else(
            |e| {
                *self.failure.borrow_mut() = Some((tensor_name(self.of.name, self.of.layer), e));
                Cow::Borrowed(&[][..])
            },
            Cow::Owned,
        )
    }

    fn data_len(&self) -> usize {
        self.job.tensor_type.bytes(self.of.size())
    }
}

/// The rows of wq or wk in transformers' order. Llama rotates neighbouring rows of a head together,
/// transformers a row of the first half and one of the second.
fn halves(values: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let head_size = values.len() / heads / cols;
    let rows = |head: usize| {
        (0..head_size).map(move |row| head * head_size + row % (head_size / 2) * 2 + row / (head_size / 2))
    };
    (0..heads).flat_map(rows).flat_map(|row| &values[row * cols..][..cols]).copied().collect()
}

#[cfg(test)]
mod tests {
    use infer_core::Rope;
    use infer_core::format::{SpecialTokens, Version};
    use safetensors::SafeTensors;

    use super::*;
    use crate::io::foreign::Parts;
    use crate::io::weights::tests::weights;

    #[test]
    fn rows_of_q_and_k_change_places() {
        let rows: Vec<f32> = (0..16).map(|i| (i / 2) as f32).collect(); // 8 rows of 2
        let rows: Vec<f32> = halves(&rows, 2, 2).into_iter().step_by(2).collect();
        assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn a_folder_has_the_models_numbers() {
        let weights = weights();
        let config = weights.header.config.with_rope(Rope::new(500000.0)).with_norm_eps(1e-6);
        let tokens = SpecialTokens::new(&[], &[5, 6]).unwrap();
        let header = Header::new(Version::V1, config).with_tokens(tokens);
        let json = br#"{"added_tokens": [{"id": 6, "content": "<end>"}], "model": {"vocab": {"five": 5}}}"#;
        let vocabulary = &Vocabulary::Json(json.to_vec());
        let parts =
            Parts { header: &header, vocabulary: Some(vocabulary), template: Some("{{ x }}"), values: &weights };
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Job { name: "tiny", parts, vocabulary, tensor_type: TensorType::F16 }).unwrap();
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        let value = |name: &str| serde_json::from_slice::<Value>(&read(name)).unwrap();
        let config = value("config.json");
        assert_eq!((&config["rms_norm_eps"], &config["rope_theta"]), (&json!(1e-6), &json!(500000.0)));
        assert_eq!((&config["eos_token_id"], &config["bos_token_id"]), (&json!([5, 6]), &Value::Null));
        assert_eq!(config["torch_dtype"], "float16");
        assert_eq!(value("generation_config.json")["eos_token_id"], json!([5, 6]));
        let tokenizer = value("tokenizer_config.json");
        assert_eq!((&tokenizer["eos_token"], &tokenizer["chat_template"]), (&json!("<end>"), &json!("{{ x }}")));
        assert_eq!(read("tokenizer.json"), json);
        let bytes = read("model.safetensors");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), shapes(&weights.header.config).unwrap().len());
        let k = file.tensor("model.layers.1.self_attn.k_proj.weight").unwrap();
        assert_eq!((k.dtype(), k.shape()), (Dtype::F16, &[8, 16][..]));
    }

    #[test]
    fn the_tensor_of_a_bad_weight_is_named() {
        let mut weights = weights();
        weights.tensors.last_mut().unwrap()[3] = f32::NAN;
        let header = Header::new(Version::V1, weights.header.config);
        let vocabulary = &Vocabulary::Json(b"{}".to_vec());
        let parts = Parts { header: &header, vocabulary: Some(vocabulary), template: None, values: &weights };
        let folder = tempfile::tempdir().unwrap();
        let job = Job { name: "tiny", parts, vocabulary, tensor_type: TensorType::F32 };
        let error = format!("{:#}", write(folder.path(), &job).unwrap_err());
        assert!(error.contains("tensor model.norm.weight: weight 3 is NaN"), "{error}");
    }
}
