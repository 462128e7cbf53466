//! Writes GGUF files, version 3, of the llama architecture: for llama.cpp and what builds on it.
//!
//! The rows of q and k are interleaved there, as here. ggml's docs/gguf.md specifies the file, and
//! llama.cpp's gguf-py the names.

mod value;
mod vocabulary;

use std::io::Write;

use anyhow::{Context, bail, ensure};
use infer_core::format::{Header, TensorName};
use infer_core::{Rope, RopeScaling};
use value::{Value, put_string};

use crate::io::export::job::Job;
use crate::io::export::tensor_type::TensorType;
use crate::io::foreign::Parts;
use crate::io::rotary::{self, TABLES};
use crate::io::tensors::{Shape, shapes};

/// Every tensor begins at a multiple of this.
const ALIGNMENT: usize = 32;

/// Writes a model, one tensor at a time.
///
/// # Errors
/// A vocabulary or a row that the file cannot hold, a weight that is too large for the type, and
/// errors of the reader and the writer.
pub fn write(out: &mut dyn Write, job: &Job) -> anyhow::Result<()> {
    let tensors = tensors(job.parts.header, job.tensor_type)?;
    let mut metadata = metadata(job.parts.header, job.tensor_type, job.name)?;
    metadata.extend(vocabulary::metadata(job.vocabulary, job.parts.header)?);
    metadata.extend(rotary_tables(&job.parts)?);
    if let Some(template) = job.parts.template {
        metadata.push(("tokenizer.chat_template".into(), Value::String(template.into())));
    }
    let mut head = Vec::new();
    put_head(&mut head, &metadata, &tensors);
    out.write_all(&head)?;
    for tensor in &tensors {
        let write = |out: &mut dyn Write| match tensor.source {
            Source::Model(name, layer) => tensor.kind.write(out, &job.parts.values.read(name, layer)?),
            Source::RopeFactors => tensor.kind.write(out, &rope_factors(job.parts.header)),
        };
        write(out).with_context(|| format!("tensor {}", tensor.name))?;
        let bytes = tensor.bytes();
        out.write_all(&[0; ALIGNMENT][..bytes.next_multiple_of(ALIGNMENT) - bytes])?;
    }
    Ok(())
}

/// A tensor of the file.
struct Entry {
    name: String,
    source: Source,
    /// (rows, cols); a norm has no rows.
    shape: Vec<usize>,
    kind: TensorType,
}

/// Where the values of a tensor come from.
enum Source {
    Model(TensorName, usize),
    RopeFactors,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.kind.bytes(self.shape.iter().product())
    }
}

/// The tensors in file order.
fn tensors(header: &Header, kind: TensorType) -> anyhow::Result<Vec<Entry>> {
    let config = &header.config;
    let mut entries = Vec::new();
    if let RopeScaling::Llama3 { .. } = config.rope.scaling {
        let (name, shape) = ("rope_freqs.weight".to_owned(), vec![config.head_size() / 2]);
        entries.push(Entry { name, source: Source::RopeFactors, shape, kind: TensorType::F32 });
    }
    for shape in shapes(config)? {
        let Shape { name, layer, rows, cols } = shape;
        let (shape, kind) = if shape.is_norm() { (vec![cols], TensorType::F32) } else { (vec![rows, cols], kind) };
        let block = kind.ggml().block_size();
        ensure!(
            cols.is_multiple_of(block),
            "rows of {} have {cols} weights, no multiple of the {block} of a q8_0 block: take --type f16 or f32",
            name.as_str()
        );
        entries.push(Entry { name: tensor_name(name, layer), source: Source::Model(name, layer), shape, kind });
    }
    Ok(entries)
}

fn tensor_name(name: TensorName, layer: usize) -> String {
    let of_layer = match name {
        TensorName::TokEmb => return "token_embd.weight".into(),
        TensorName::RmsFinal => return "output_norm.weight".into(),
        TensorName::Wcls => return "output.weight".into(),
        TensorName::RmsAtt => "attn_norm",
        TensorName::Wq => "attn_q",
        TensorName::Wk => "attn_k",
        TensorName::Wv => "attn_v",
        TensorName::Wo => "attn_output",
        TensorName::RmsFfn => "ffn_norm",
        TensorName::W1 => "ffn_gate",
        TensorName::W2 => "ffn_down",
        TensorName::W3 => "ffn_up",
        TensorName::FreqCisReal | TensorName::FreqCisImag => "rope", // not among the shapes
    };
    format!("blk.{layer}.{of_layer}.weight")
}

/// What llama.cpp divides each pair's frequency by: Llama 3's scaling is no key but a tensor.
fn rope_factors(header: &Header) -> Vec<f32> {
    let rope = header.config.rope;
    let head_size = header.config.head_size();
    let plain = Rope::new(rope.theta);
    (0..head_size / 2).map(|i| plain.frequency(i, head_size) / rope.frequency(i, head_size)).collect()
}

/// The keys and their values, in file order.
fn metadata(header: &Header, kind: TensorType, name: &str) -> anyhow::Result<Vec<(String, Value)>> {
    let c = &header.config;
    let size = |n: usize| Value::U32(n as u32); // below 2^31, as Config::check tells
    let file_type = match kind {
        TensorType::F32 => 0,
        TensorType::F16 => 1,
        TensorType::Q8_0 => 7,
        TensorType::Bf16 => 32,
    };
    let mut keys = vec![
        ("general.architecture", Value::String("llama".into())),
        ("general.type", Value::String("model".into())),
        ("general.name", Value::String(name.into())),
        ("general.alignment", size(ALIGNMENT)),
        ("general.file_type", Value::U32(file_type)),
        ("general.quantization_version", Value::U32(2)),
        ("llama.vocab_size", size(c.vocab_size)),
        ("llama.context_length", size(c.seq_len)),
        ("llama.embedding_length", size(c.dim)),
        ("llama.block_count", size(c.n_layers)),
        ("llama.feed_forward_length", size(c.hidden_dim)),
        ("llama.attention.head_count", size(c.n_heads)),
        ("llama.attention.head_count_kv", size(c.n_kv_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(c.norm_eps)),
        ("llama.rope.dimension_count", size(c.head_size())),
        ("llama.rope.freq_base", Value::F32(c.rope.theta)),
    ];
    match c.rope.scaling {
        RopeScaling::None => {}
        // llama.cpp takes it from the tensor of rope_factors; the key tells what made the factors.
        RopeScaling::Llama3 { original_seq_len, .. } => {
            keys.push(("llama.rope.scaling.original_context_length", size(original_seq_len)));
        }
        RopeScaling::Linear { factor } => {
            keys.push(("llama.rope.scaling.type", Value::String("linear".into())));
            keys.push(("llama.rope.scaling.factor", Value::F32(factor)));
        }
        other => bail!("GGUF has no name for the RoPE scaling {other:?}"),
    }
    Ok(keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// The rotary tables of a file of version 0, under keys of our own: an import brings the file back
/// byte for byte. Tables that are computed again are not carried, and no larger ones than the
/// import keeps.
fn rotary_tables(parts: &Parts) -> anyhow::Result<Vec<(String, Value)>> {
    const MOST: usize = 1 << 20; // values: 16,384 positions with heads of 128
    let mut keys = Vec::new();
    for name in TABLES {
        let table = rotary::differing(parts.values, &parts.header.config, name)?;
        let table = table.filter(|table| table.len() <= MOST);
        keys.extend(table.map(|table| (format!("llama2c.{}", name.as_str()), Value::F32s(table))));
    }
    Ok(keys)
}

/// Writes all that comes before the first tensor's bytes.
fn put_head(out: &mut Vec<u8>, metadata: &[(String, Value)], tensors: &[Entry]) {
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(out, key);
        value.put(out);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_string(out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        let kind: u32 = match tensor.kind {
            TensorType::F32 => 0,
            TensorType::F16 => 1,
            TensorType::Q8_0 => 8,
            TensorType::Bf16 => 30,
        };
        out.extend(kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use candle_core::Device;
    use candle_core::quantized::gguf_file::Content;
    use infer_core::Config;
    use infer_core::format::Version;

    use super::*;
    use crate::io::foreign::Values;
    use crate::io::vocabulary::Vocabulary;
    use crate::io::weights::Weights;
    use crate::io::weights::tests::weights;

    fn tokenizer(vocab_size: usize) -> Vocabulary {
        let entries = (0..vocab_size).map(|id| (-(id as f32), format!("piece {id}")));
        let mut bytes = Vec::new();
        infer_core::tokenizer::write(&mut bytes, 9, entries.collect::<Vec<_>>()).unwrap();
        Vocabulary::Bin(bytes)
    }

    fn file(weights: &Weights, header: &Header, tensor_type: TensorType) -> anyhow::Result<Vec<u8>> {
        let vocabulary = &tokenizer(header.config.vocab_size);
        let parts = Parts { header, vocabulary: Some(vocabulary), template: Some("{{ messages }}"), values: weights };
        let mut file = Vec::new();
        write(&mut file, &Job { name: "tiny", parts, vocabulary, tensor_type }).map(|()| file)
    }

    /// candle reads the file back: the same weights, and the numbers of the header.
    #[test]
    fn another_reader_finds_the_model() {
        let weights = weights();
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len: 64 };
        let config = weights.header.config.with_rope(Rope::new(500000.0).with_scaling(scaling)).with_norm_eps(1e-6);
        let file = file(&weights, &Header::new(Version::V1, config), TensorType::F32).unwrap();
        let mut reader = Cursor::new(&file);
        let content = Content::read(&mut reader).unwrap();
        assert_eq!(content.tensor_data_offset % ALIGNMENT as u64, 0);
        assert_eq!(content.metadata["llama.attention.head_count_kv"].to_u32().unwrap(), 2);
        assert_eq!(content.metadata["llama.rope.freq_base"].to_f32().unwrap(), 500000.0);
        assert_eq!(content.metadata["llama.attention.layer_norm_rms_epsilon"].to_f32().unwrap(), 1e-6);
        assert_eq!(content.metadata["tokenizer.chat_template"].to_string().unwrap(), "{{ messages }}");
        let tokens = content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
        assert_eq!((tokens.len(), tokens[7].to_string().unwrap().as_str()), (512, "piece\u{2581}7"));
        let mut tensor = |name: &str| {
            let tensor = content.tensor(&mut reader, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
            (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        for Shape { name, layer, rows, cols } in shapes(&config).unwrap() {
            let dims = if rows == 1 { vec![cols] } else { vec![rows, cols] };
            assert_eq!(tensor(&tensor_name(name, layer)), (dims, weights.read(name, layer).unwrap().to_vec()));
        }
        // A head of 4 has two pairs: the fast one is left alone, the slow one turns 8 times slower.
        assert_eq!(tensor("rope_freqs.weight"), (vec![2], vec![1.0, 8.0]));
    }

    #[test]
    fn rows_that_blocks_do_not_divide_are_refused() {
        let weights = weights(); // rows of 16
        let error = file(&weights, &Header::new(Version::V1, weights.header.config), TensorType::Q8_0).unwrap_err();
        assert!(error.to_string().contains("rows of tok_emb have 16 weights, no multiple of the 32"), "{error:#}");
    }

    #[test]
    fn norms_stay_f32() {
        let config = Config::new(32, 64, 1, 4, 300, 16);
        let kinds: Vec<TensorType> =
            tensors(&Header::new(Version::V1, config), TensorType::Q8_0).unwrap().iter().map(|t| t.kind).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == TensorType::F32).count(), 3);
    }
}
