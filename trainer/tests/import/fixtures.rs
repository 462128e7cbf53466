//! The small models of `tests/fixtures`, with the logits, tokens and texts of the programs that
//! made them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use infer_core::format::Header;
use infer_core::{OwnedTokenizer, RopeScaling};
use serde::Deserialize;
use tests::Run;
use tokenizers::Tokenizer;
use trainer::io::import::model::Hints;
use trainer::io::import::open;
use trainer::io::vocabulary::Vocabulary;
use trainer::io::weights::FileVersion;

use crate::{import, model_file};

#[derive(Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    /// By position.
    logits: BTreeMap<usize, Vec<f32>>,
    greedy: Vec<u32>,
    #[serde(default)]
    texts: BTreeMap<String, Vec<u32>>,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(fixture(name).join("expected.json")).unwrap()).unwrap()
}

/// Most that a logit may differ: transformers computes in f32, too, in another order.
const TOLERANCE: f32 = 1e-4;

#[test]
fn logits_are_those_of_the_program_that_made_the_model() {
    for name in ["llama", "llama3", "mistral", "linear", "meta", "meta3", "llama2c/ckpt.pt"] {
        let model = import(&fixture(name));
        let file = model_file(&model, FileVersion::V1);
        let expected = expected(name.split('/').next().unwrap());
        let mut run = Run::new(&file, 8);
        let logits = run.logits(&expected.tokens).unwrap();
        for (position, theirs) in &expected.logits {
            let pairs = logits[*position].iter().zip(theirs);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= TOLERANCE, "{name}: logits at {position} differ by {worst}");
        }
        let mut tokens = expected.tokens.clone();
        for next in &expected.greedy {
            let last = run.logits(&tokens).unwrap().pop().unwrap();
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            assert_eq!(best as u32, *next, "{name}: after {} tokens", tokens.len());
            tokens.push(*next);
        }
    }
}

#[test]
fn headers_say_what_the_configurations_say() {
    let header = |name| import(&fixture(name)).header;
    let llama = header("llama");
    assert!(llama.is_plain() && !llama.config.shared_classifier, "{llama:?}");
    let llama3 = header("llama3");
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len } =
        llama3.config.rope.scaling
    else {
        panic!("{llama3:?}");
    };
    assert_eq!((factor, low_freq_factor, high_freq_factor, original_seq_len), (8.0, 1.0, 4.0, 32));
    assert_eq!((llama3.config.rope.theta, llama3.config.norm_eps), (500_000.0, 1e-5));
    assert_eq!((llama3.tokens.bos(), llama3.tokens.eos()), (&[295][..], &[296, 299][..]));
    assert_eq!(header("mistral").config.norm_eps, 1e-6);
    assert_eq!(header("linear").config.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(header("meta").config.norm_eps, 1e-6);
    assert!(header("llama2c/ckpt.pt").is_plain());
}

#[test]
fn what_a_plain_file_cannot_say_survives_in_the_header() {
    let model = import(&fixture("llama3"));
    let header = Header::parse(&model_file(&model, FileVersion::V2)).unwrap();
    assert_eq!((header.config.rope, header.tokens), (model.header.config.rope, model.header.tokens));
    assert!(FileVersion::V0.header(&model.header).is_err());
}

#[test]
fn a_vocabulary_that_llama2c_cuts_alike_becomes_a_tokenizer_bin() {
    let Some(Vocabulary::Bin(bytes)) = import(&fixture("llama")).vocabulary else { panic!("no tokenizer.bin") };
    let tokenizer = OwnedTokenizer::whole(bytes).unwrap();
    for (text, ids) in expected("llama").texts {
        assert_eq!(tokenizer.encode(&text).unwrap()[1..], ids, "{text:?}");
    }
}

#[test]
fn the_tokenizer_json_of_a_sentencepiece_model_gives_the_same_tokenizer_bin() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(fixture("llama").join(name), folder.path().join(name)).unwrap();
    }
    assert_eq!(import(folder.path()).vocabulary, import(&fixture("llama")).vocabulary);
}

#[test]
fn a_byte_level_vocabulary_stays_a_tokenizer_json() {
    let Some(Vocabulary::Json(bytes)) = import(&fixture("llama3")).vocabulary else { panic!("no tokenizer.json") };
    let tokenizer = Tokenizer::from_bytes(&bytes).unwrap();
    for (text, ids) in expected("llama3").texts {
        assert_eq!(tokenizer.encode(text.as_str(), false).unwrap().get_ids(), ids, "{text:?}");
    }
}

#[test]
fn a_context_is_cut_and_never_stretched() {
    let hints = |n| Hints { max_seq_len: Some(n), ..Hints::default() };
    assert_eq!(open(&fixture("llama3"), &hints(32)).unwrap().header.config.seq_len, 32);
    let error = crate::error(&fixture("llama3"), &hints(65));
    assert!(error.contains("max_position_embeddings is 64"), "{error}");
    assert_eq!(open(&fixture("meta"), &hints(96)).unwrap().header.config.seq_len, 96);
}
