//! The models of `shared/data`, with the golden outputs where there are some.

use std::collections::HashMap;

use infer_core::format::{Header, TensorName};
use serde::Deserialize;
use tests::{Run, shared};
use trainer::io::import::model::Hints;
use trainer::io::import::{open, open_tokenizer};
use trainer::io::vocabulary::Vocabulary;
use trainer::io::weights::FileVersion;

use crate::{error, import, model_file};

const STORIES: &str = "data/models/stories260K/stories260K.bin";

#[derive(Deserialize)]
struct Golden {
    prompt_ids: Vec<u32>,
    last_logits_first8: Vec<f64>,
    greedy_ids: Vec<u32>,
}

/// The bytes of a file of version 0 outside of its rotary tables. Those differ in the last bit from
/// one exporter to another, and other formats do not have them.
fn without_tables(file: &[u8]) -> Vec<u8> {
    let layout = Header::parse(file).unwrap().layout().unwrap();
    let tables = [TensorName::FreqCisReal, TensorName::FreqCisImag].map(|name| layout.get(name).unwrap());
    let (start, end) = (tables[0].offset as usize, (tables[1].offset + tables[1].bytes()) as usize);
    [&file[..start], &file[end..]].concat()
}

#[test]
fn the_same_weights_in_other_formats_give_the_same_file() {
    let Some(stories) = shared::bytes(STORIES) else { return };
    for name in ["tinyllamas-stories-260k-f32.gguf", "stories260K.export_v1.bin", "stories260K.bin"] {
        let model = import(&shared::file(&format!("data/models/stories260K/{name}")).unwrap());
        assert!(model.header.is_plain(), "{name}");
        let file = model_file(&model, FileVersion::V0);
        assert!(without_tables(&file) == without_tables(&stories), "{name}");
        assert!(file == stories || name != "stories260K.bin", "a file keeps its own tables");
    }
    let checkpoint = import(&shared::file("data/models/llama2xs_ckpt/ckpt.pt").unwrap());
    let exported = shared::bytes("data/models/llama2xs_ckpt/model.bin").unwrap();
    assert!(without_tables(&model_file(&checkpoint, FileVersion::V0)) == without_tables(&exported));
}

#[test]
fn logits_and_greedy_ids_are_the_golden_ones() {
    let Some(golden) = shared::json::<HashMap<String, serde_json::Value>>("golden/outputs.json") else { return };
    for (name, path, tolerance) in [
        ("stories260K", "stories260K/tinyllamas-stories-260k-f32.gguf", 1e-4),
        ("llama2xs_ckpt", "llama2xs_ckpt/ckpt.pt", 1e-4),
        ("meta_random", "meta_random/demo_rand_params.pth", 1e-4),
        ("tok105", "tok105/model5000.bin", 1e-4),
    ] {
        let golden = Golden::deserialize(&golden[name]).unwrap();
        let path = shared::file(&format!("data/models/{path}")).unwrap();
        let params = path.with_file_name("demo_config.json");
        let hints = Hints { params: params.exists().then_some(params), ..Hints::default() };
        let model = open(&path, &hints).unwrap_or_else(|e| panic!("{e:#}"));
        let file = model_file(&model, FileVersion::V1);
        let mut run = Run::new(&file, 16);
        let logits = run.logits(&golden.prompt_ids).unwrap().pop().unwrap();
        for (ours, theirs) in logits.iter().zip(&golden.last_logits_first8) {
            assert!((f64::from(*ours) - theirs).abs() <= tolerance, "{name}: {ours} and {theirs}");
        }
        let all = run.logits(&golden.greedy_ids[..golden.greedy_ids.len() - 1]).unwrap();
        let best =
            |logits: &Vec<f32>| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        let from = golden.prompt_ids.len();
        let greedy: Vec<u32> = all[from - 1..].iter().map(best).collect();
        assert_eq!(greedy, golden.greedy_ids[from..], "{name}");
    }
}

#[test]
fn groups_that_cross_rows_are_read_right() {
    let Some(original) = shared::bytes(STORIES) else { return };
    let path = shared::file("data/models/stories260K/stories260K.export_v2_q80_gs8.bin").unwrap();
    let file = model_file(&import(&path), FileVersion::V1);
    let tokens = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421];
    let [ours, exact] = [&file, &original].map(|file| Run::new(file, 16).logits(&tokens).unwrap().pop().unwrap());
    let worst = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!((1e-4..0.5).contains(&worst), "int8 weights change the logits by {worst}");
}

#[test]
fn shapes_and_one_number_are_enough() {
    let Some(path) = shared::file("data/models/meta_constant/tiny_fair_checkpoint.pt") else { return };
    let message = error(&path, &Hints::default());
    assert!(message.contains("tiny_fair_checkpoint.pt") && message.contains("--n-heads"), "{message}");
    let model = open(&path, &Hints { n_heads: Some(4), ..Hints::default() }).unwrap();
    let config = model.header.config;
    assert_eq!((config.dim, config.vocab_size, config.n_heads, config.n_kv_heads), (32, 500, 4, 4));
    assert!(model.values.read(TensorName::Wq, 0).unwrap().iter().all(|w| *w == 0.2));
}

#[test]
fn vocabularies_become_the_tokenizer_bin_of_llama2c() {
    let Some(llama2) = shared::bytes("data/tokenizers/llama2/tokenizer.bin") else { return };
    for (name, expected) in [
        ("data/tokenizers/llama2/tokenizer.model", llama2.clone()),
        ("data/tokenizers/llama2/ggml-vocab-llama-spm.gguf", llama2),
        ("data/models/stories260K/tok512.model", shared::bytes("data/models/stories260K/tok512.bin").unwrap()),
        ("data/models/tok105/tok105.model", shared::bytes("data/models/tok105/tok105.bin").unwrap()),
        (
            "data/models/stories260K/tinyllamas-stories-260k-f32.gguf",
            shared::bytes("data/models/stories260K/tok512.bin").unwrap(),
        ),
    ] {
        let vocabulary = open_tokenizer(&shared::file(name).unwrap()).unwrap_or_else(|e| panic!("{e:#}"));
        assert!(vocabulary == Vocabulary::Bin(expected), "{name}");
    }
}
