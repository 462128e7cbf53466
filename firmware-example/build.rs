//! Writes what the image carries: memory.x for the linker, two models with random weights, their tokenizer, and the hash
//! of the logits that each model gives on the host.

#[path = "src/story.rs"]
mod story;

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use infer_core::format::{Header, Version};
use infer_core::{Aligned, Config, IndexEntry, MergeSlot, ProbIndex, Tokenizer, WeightType};

const CONFIG: Config = Config {
    dim: 64,
    hidden_dim: 192,
    n_layers: 2,
    n_heads: 4,
    n_kv_heads: 2,
    vocab_size: 300,
    seq_len: 128,
    shared_classifier: true,
    weights: WeightType::F32,
};

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = env::var("OUT_DIR")?;
    let out = Path::new(&out_dir);
    fs::copy("memory.x", out.join("memory.x"))?;
    println!("cargo:rustc-link-search={out_dir}");
    println!("cargo:rustc-link-arg=-Tlink.x");
    println!("cargo:rerun-if-changed=memory.x");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/story.rs");

    let tokenizer = tokenizer_file();
    fs::write(out.join("tokenizer.bin"), &tokenizer)?;
    let int8 = Config { weights: WeightType::Q8 { group_size: 64 }, shared_classifier: false, ..CONFIG };
    for (name, version, config) in [("f32", Version::V0, CONFIG), ("int8", Version::V2, int8)] {
        let model = model_file(Header { version, config })?;
        fs::write(out.join(format!("{name}.bin")), &model)?;
        fs::write(out.join(format!("{name}.hash")), host_hash(&model, &tokenizer)?.to_le_bytes())?;
    }
    Ok(())
}

/// Random weights of a size that keeps activations near 1, so that the logits differ and every layer matters.
fn model_file(header: Header) -> Result<Vec<u8>, infer_core::Error> {
    let layout = header.layout()?;
    let mut file = header.to_bytes()?[..header.size()].to_vec();
    let mut random = Random(1);
    for tensor in layout.iter() {
        let n = tensor.rows * tensor.cols;
        let scale = 1.7 / (tensor.cols as f32).sqrt();
        for _ in 0..tensor.count {
            match tensor.weights {
                WeightType::F32 if tensor.rows == 1 => {
                    (0..n).for_each(|_| file.extend((1.0 + 0.1 * random.uniform()).to_le_bytes()));
                }
                WeightType::F32 => (0..n).for_each(|_| file.extend((scale * random.uniform()).to_le_bytes())),
                WeightType::Q8 { group_size } => {
                    file.extend((0..n).map(|_| (127.0 * random.uniform()) as i8 as u8));
                    (0..n / group_size)
                        .for_each(|_| file.extend((scale / 127.0 * (1.0 + 0.1 * random.uniform())).to_le_bytes()));
                }
            }
        }
    }
    assert_eq!(file.len() as u64, layout.file_bytes);
    Ok(file)
}

/// The control and byte tokens, letters, and the pieces that lead to the prompt's words.
fn tokenizer_file() -> Vec<u8> {
    const WORDS: [&str; 13] =
        [" O", "nc", "nce", " Once", " u", "po", "pon", " upon", " a", " t", "im", "ime", " time"];
    let mut pieces: Vec<Vec<u8>> = vec![b"<unk>".into(), b"\n<s>\n".into(), b"\n</s>\n".into()];
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>").into_bytes()));
    pieces.extend((b'a'..=b'z').chain([b' ', b'O']).map(|letter| vec![letter]));
    pieces.extend(WORDS.iter().map(|word| word.as_bytes().to_vec()));
    assert_eq!(pieces.len(), CONFIG.vocab_size);

    let longest = pieces.iter().map(Vec::len).max().unwrap_or(0);
    let mut file = (longest as u32).to_le_bytes().to_vec();
    for (id, piece) in pieces.iter().enumerate() {
        file.extend((-(id as f32)).to_le_bytes());
        file.extend((piece.len() as u32).to_le_bytes());
        file.extend(piece);
    }
    file
}

/// What the chip is to compute, computed here.
fn host_hash(model: &[u8], tokenizer: &[u8]) -> Result<u64, infer_core::Error> {
    let mut aligned = Box::new(Aligned([0; 1 << 20]));
    let aligned = &mut aligned.0[..model.len()];
    aligned.copy_from_slice(model);
    let plan = Config::from_header(model)?.plan(story::LIMITS)?;
    let mut index = vec![IndexEntry::EMPTY; plan.tokenizer];
    let tokenizer = Tokenizer::new(tokenizer, plan.config.vocab_size, &mut index)?;
    let memory = story::Memory {
        hot_f32: &mut vec![0.0; plan.hot_f32],
        hot_i8: &mut vec![0; plan.hot_i8],
        kv: &mut vec![0.0; plan.kv_values],
        candidates: &mut vec![ProbIndex::default(); plan.sampler],
        merge: &mut [MergeSlot::EMPTY; story::MAX_PROMPT_TOKENS],
        tokens: &mut [0; story::MAX_PROMPT_TOKENS],
    };
    story::tell(aligned, &plan, &tokenizer, story::PROMPT, memory, |_| ())
}

/// xorshift64 (Marsaglia, 2003).
struct Random(u64);

impl Random {
    /// A number from -1 to 1.
    fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
