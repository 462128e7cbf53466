//! Folders of Hugging Face's transformers: config.json, one or many files of safetensors, and the
//! vocabulary.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use infer_core::format::TensorName;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use crate::io::import::file::{Fields, Input, read_small};
use crate::io::import::huggingface_config;
use crate::io::import::model::{Hints, Model};
use crate::io::import::tensors::{Stored, Table, Type, shown};
use crate::io::import::weights::{Names, Weights};

/// The configuration of a folder.
pub const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest header of a safetensors file that is read, in bytes: about 100,000 tensors.
const MAX_HEADER: u64 = 16 << 20;

/// Opens a folder.
///
/// # Errors
/// The model computes something else than Llama 2 and 3, or a file is missing or damaged.
pub fn open(folder: &Path, hints: &Hints) -> anyhow::Result<Model> {
    let fields = Fields::read(&folder.join(CONFIG))?;
    let mut config = huggingface_config::read(&fields, hints)?;
    let table = read_tables(folder)?;
    match fields.get("tie_word_embeddings").and_then(|tied| tied.as_bool()) {
        Some(tied) => config.shared_classifier = tied,
        None => config.shared_classifier = !table.has("lm_head.weight"),
    }
    let weights = Weights::new(vec![table], NAMES, config)?;
    let mut eos = fields.ids("eos_token_id")?;
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        eos = Fields::read(&generation)?.ids("eos_token_id")?.or(eos);
    }
    Ok(Model { config: weights.config(), eos, values: Box::new(weights) })
}

const NAMES: Names = Names {
    name: |name, layer| {
        let part = match name {
            TensorName::TokEmb => return "model.embed_tokens.weight".into(),
            TensorName::RmsFinal => return "model.norm.weight".into(),
            TensorName::Wcls => return "lm_head.weight".into(),
            TensorName::RmsAtt => "input_layernorm",
            TensorName::RmsFfn => "post_attention_layernorm",
            TensorName::Wq => "self_attn.q_proj",
            TensorName::Wk => "self_attn.k_proj",
            TensorName::Wv => "self_attn.v_proj",
            TensorName::Wo => "self_attn.o_proj",
            TensorName::W1 => "mlp.gate_proj",
            TensorName::W2 => "mlp.down_proj",
            TensorName::W3 => "mlp.up_proj",
            TensorName::FreqCisReal | TensorName::FreqCisImag => "", // not in version 1
        };
        format!("model.layers.{layer}.{part}.weight")
    },
    is_unneeded: |name| name.ends_with(".rotary_emb.inv_freq"),
    half_split: true,
};

/// The tensors of all files of a folder.
fn read_tables(folder: &Path) -> anyhow::Result<Table> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let single = folder.join(WEIGHTS);
    let index = folder.join(INDEX);
    if !index.exists() {
        if !single.exists() && folder.join("pytorch_model.bin").exists() {
            bail!("{} has pytorch_model.bin and no {WEIGHTS}: save it with save_pretrained first", folder.display());
        }
        return read_files(&[single], None);
    }
    let bytes = read_small(&index, MAX_HEADER)?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|e| anyhow!("{} is no index of tensors: {e}", index.display()))?;
    let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    for name in &names {
        let plain = Path::new(name).file_name().is_some_and(|plain| plain == *name);
        ensure!(plain, "{}: the file {name:?} is not in this folder", index.display());
    }
    let files: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    let claimed = |name: &str, file: usize| {
        let claimed = weight_map.get(name).map(String::as_str);
        ensure!(
            claimed == names.iter().nth(file).copied(),
            "{} says that tensor {} is in {}",
            index.display(),
            shown(name),
            claimed.map_or("no file".into(), shown)
        );
        Ok(())
    };
    let table = read_files(&files, Some(&claimed))?;
    let missing = weight_map.keys().find(|name| !table.has(name));
    ensure!(missing.is_none(), "{}: tensor {} is in no file", index.display(), shown(missing.map_or("", |name| name)));
    Ok(table)
}

type Check<'c> = &'c dyn Fn(&str, usize) -> anyhow::Result<()>;

fn read_files(paths: &[PathBuf], check: Option<Check<'_>>) -> anyhow::Result<Table> {
    let files = paths.iter().map(|path| Input::open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let headers = files.iter().map(|file| read_header(file).with_context(|| file.path.display().to_string()));
    let headers = headers.collect::<anyhow::Result<Vec<_>>>()?;
    let mut table = Table::new(files);
    for (file, (start, header)) in headers.iter().enumerate() {
        for (name, info) in header.tensors() {
            if let Some(check) = check {
                check(&name, file)?;
            }
            let stored_as = match info.dtype {
                Dtype::F32 => Type::F32,
                Dtype::F16 => Type::F16,
                Dtype::BF16 => Type::Bf16,
                _ if (NAMES.is_unneeded)(&name) => continue,
                other => bail!(
                    "{}: tensor {} is stored as {other:?}: F32, F16 and BF16 can be read",
                    paths[file].display(),
                    shown(&name)
                ),
            };
            let shape = info.shape.iter().map(|&size| size as u64).collect();
            let offset = start + info.data_offsets.0 as u64;
            table.insert(&name, Stored { file, offset, shape, stored_as })?;
        }
    }
    Ok(table)
}

/// The header of a safetensors file, and the offset of the first tensor. The header's own rules,
/// such as that tensors follow each other without gaps, are checked by the safetensors crate.
fn read_header(file: &Input) -> anyhow::Result<(u64, Metadata)> {
    let len = file.bytes(0, 8).context("it is no safetensors file")?;
    let len = u64::from_le_bytes(len[..].try_into()?);
    ensure!(len <= MAX_HEADER, "its header has {len} bytes: at most {MAX_HEADER} are read");
    let header = file.bytes(8, len).context("its header is cut short")?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| anyhow!("its header is damaged: {e}"))?;
    let start = 8 + len;
    let end = start.checked_add(header.data_len() as u64);
    ensure!(
        end == Some(file.len),
        "its header speaks of {} bytes of tensors, and {} follow it: it is cut short or damaged",
        header.data_len(),
        file.len - start
    );
    Ok((start, header))
}
