//! The project's own models: the one that the program embeds, and the small one of the firmware.

use infer_core::WeightType;
use infer_core::format::Header;

use super::*;

fn file(name: &str) -> String {
    format!("{}/../models/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The clock seeds the stories, so the test asks for most of them only to end by themselves within
/// the context.
#[test]
fn no_argument_tells_a_whole_story() {
    let stories: Vec<serde_json::Value> =
        (0..5).map(|_| serde_json::from_str(stdout(&run(&["--json"]))).unwrap()).collect();
    let whole = |story: &&serde_json::Value| {
        let text = story["text"].as_str().unwrap();
        story["ended_by"] == "bos" && text.split_whitespace().count() > 20
    };
    assert!(stories.iter().filter(whole).count() >= 3, "{stories:?}");
    assert!(stdout(&run(&[])).split_whitespace().count() > 20);
    assert!(stdout(&run(&["-i", "Once upon a time", "-n", "60"])).starts_with("Once upon a time"));
    let chat = run_with_input(&["-m", "chat", "-y", "", "-i", "Hello"], b"");
    assert!(stdout(&chat).starts_with("Assistant: "));
    assert_fails(&run(&["-n", "3", "-i", "Once upon a time"]), 2, &["3 positions", "512"]);
}

#[test]
fn the_embedded_model_is_the_file_in_models() {
    let (model, tokenizer) = (file("model.bin"), file("tokenizer.bin"));
    let hash = |model: &[&str]| -> String {
        let fixed = ["bench", "--tokens", "12", "--repeat", "1", "--json"];
        let report: serde_json::Value = serde_json::from_str(stdout(&run(&[&fixed, model].concat()))).unwrap();
        assert_eq!(report["model"], *model.first().unwrap_or(&"embedded default"));
        report["logits_hash"].as_str().unwrap().into()
    };
    assert_eq!(hash(&[]), hash(&[&model]));
    let flags = ["-s", "7", "-n", "80", "-i", "One day"];
    assert_eq!(stdout(&run(&flags)), stdout(&run(&[&[model.as_str()], &flags[..]].concat())));
    assert_eq!(stdout(&run(&["inspect"])), stdout(&run(&["inspect", &model])));
    assert_eq!(stdout(&run(&["tokenize", "A cat."])), stdout(&run(&["tokenize", "-z", &tokenizer, "A cat."])));

    let text = scratch("embedded_perplexity").join("text.txt");
    std::fs::write(&text, "Once upon a time, there was a little girl. She liked to play with her red ball.").unwrap();
    let text = text.to_str().unwrap();
    let perplexity = |files: &[&str]| run(&[&["perplexity"], files, &["--window", "20"]].concat());
    assert_eq!(stdout(&perplexity(&[text])), stdout(&perplexity(&[&model, text])));
    assert_fails(&perplexity(&[]), 2, &["TEXT"]);
}

#[test]
fn another_vocabulary_than_the_embedded_model_s_is_refused() {
    let tokenizer = scratch("embedded_vocabulary").join("tokenizer.bin");
    std::fs::write(&tokenizer, tokenizer_file(&[], 300)).unwrap();
    assert_fails(&run(&["-z", tokenizer.to_str().unwrap()]), 1, &["tokenizer.bin", "token 300 of 2048"]);
}

/// The header of an int8 model that every kernel runs: groups of 32 or more, whole registers of 32
/// weights.
fn int8_header(bytes: &[u8]) -> Header {
    let header = Header::parse(bytes).unwrap();
    assert!(header.version == Version::V2 && header.config.hidden_dim.is_multiple_of(32));
    let WeightType::Q8 { group_size } = header.config.weights else { panic!("not int8") };
    assert!(group_size >= 32);
    assert_eq!(header.layout().unwrap().file_bytes, bytes.len() as u64);
    header
}

#[test]
fn the_embedded_model_is_small_and_int8() {
    let bytes = std::fs::read(file("model.bin")).unwrap();
    assert!(bytes.len() < 1_600_000);
    int8_header(&bytes);
}

/// Firmware can hold the small model.
#[test]
fn the_firmware_s_model_is_small_and_int8() {
    let bytes = std::fs::read(file("firmware/model.bin")).unwrap();
    assert!(bytes.len() < 300_000);
    int8_header(&bytes);
    // The f32 file holds the same model: quantised it is the int8 file, byte for byte.
    let int8 = scratch("default_model").join("int8.bin");
    stdout(&run(&["quantize", &file("firmware/model-f32.bin"), int8.to_str().unwrap()]));
    assert!(std::fs::read(int8).unwrap() == bytes);
}

/// The READMEs of the models say how well they read stories.
#[test]
fn the_project_s_models_read_stories() {
    let Some(text) = shared::file("data/text/tinystories_valid.txt") else { return };
    for (folder, most) in [("", 0.52), ("firmware/", 1.2 * 0.6232)] {
        let output = run(&["perplexity", &file(&format!("{folder}model.bin")), text.to_str().unwrap()]);
        let line = stdout(&output).lines().find_map(|line| line.strip_prefix("nats per byte")).unwrap();
        let nats: f64 = line.trim().parse().unwrap();
        let readme = std::fs::read_to_string(file(&format!("{folder}README.md"))).unwrap();
        let stated = readme.lines().find_map(|line| line.strip_prefix("| nats per byte | ")).unwrap();
        let stated: f64 = stated.split_whitespace().next().unwrap().parse().unwrap();
        assert!((nats - stated).abs() < 1e-4, "models/{folder}README.md says {stated}, the file gives {nats}");
        assert!(nats <= most, "models/{folder}model.bin: {nats} nats per byte");
    }
}
