//! Damaged and hostile files: each is refused with one line that names the file, and none takes
//! memory for what it claims to have.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use trainer::io::foreign::Foreign;
use trainer::io::import::model::Hints;
use trainer::io::import::{open, open_tokenizer};

use crate::error;

/// A folder with copies of the files of a fixture.
fn copy(fixture: &str) -> TempDir {
    let from = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(fixture);
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// Reads every tensor of a model.
fn read_all(model: &Foreign) -> std::io::Result<()> {
    let layout = model.header.layout().unwrap();
    for tensor in layout.iter() {
        for layer in 0..tensor.count {
            let values = model.values.read(tensor.name, layer)?;
            assert_eq!(values.len(), tensor.rows * tensor.cols);
        }
    }
    Ok(())
}

/// The first error of opening a model and reading all of it.
fn refusal(path: &Path) -> String {
    let read = open(path, &Hints::default()).and_then(|model| Ok(read_all(&model)?));
    let error = format!("{:#}", read.expect_err("it was read"));
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// Lengths at which a file of `len` bytes is cut: all short ones, then some.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..len.min(300)).chain((300..len).step_by(len / 200 + 1)).chain([len - 1])
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn cut_files_are_refused_at_every_length() {
    for (fixture, file, input) in [
        ("llama", "model.safetensors", ""),
        ("llama3", "model-00002-of-00002.safetensors", ""),
        ("meta", "consolidated.01.pth", ""),
        ("llama2c", "ckpt.pt", "ckpt.pt"),
    ] {
        let folder = copy(fixture);
        for name in ["tokenizer.json", "tokenizer.model"] {
            _ = std::fs::remove_file(folder.path().join(name)); // reading them again and again takes time
        }
        let path = folder.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        for len in cuts(whole.len()) {
            write(&path, &whole[..len]);
            let error = refusal(&folder.path().join(input));
            assert!(error.contains(file) || len < 4, "{fixture} cut at {len}: {error}");
        }
    }
}

#[test]
fn fields_that_ask_for_other_maths_are_named() {
    for (field, value, part) in [
        ("attention_bias", json!(true), "attention_bias is true"),
        ("mlp_bias", json!(true), "mlp_bias is true"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("head_dim", json!(64), "head_dim is 64"),
        ("sliding_window", json!(16), "sliding_window is 16"),
        ("num_local_experts", json!(8), "num_local_experts is 8"),
        ("final_logit_softcapping", json!(30.0), "final_logit_softcapping is 30.0"),
        ("rope_scaling", json!({ "type": "yarn", "factor": 4.0 }), "\"yarn\""),
        ("rope_scaling", json!({ "type": "linear", "factor": 0.0 }), "0"),
        ("rope_theta", json!("ten"), "rope_theta is \"ten\""),
        ("rms_norm_eps", json!(-1.0), "-1"),
        ("num_hidden_layers", json!(3), "layers.2."),
        ("num_hidden_layers", json!(1), "layers.1."),
        ("num_hidden_layers", json!(2_000_000_000), "2000000000 layers"),
        ("num_hidden_layers", json!(1e300), "num_hidden_layers is 1e+300"),
        ("hidden_size", json!(-32), "hidden_size is -32"),
        ("hidden_size", Value::Null, "hidden_size is missing"),
        ("vocab_size", json!(299), "embed_tokens"),
        ("num_key_value_heads", json!(3), "n_kv_heads"),
        ("eos_token_id", json!("x"), "eos_token_id is \"x\""),
        ("eos_token_id", json!([299, 300]), "token 300"),
        ("model_type", json!("granite"), "granite"),
        ("quantization_config", json!({ "quant_method": "gptq" }), "quantization_config"),
    ] {
        let folder = copy("llama");
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        if field == "model_type" {
            config["unheard_of"] = json!(1);
        }
        std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
        write(&path, config.to_string().as_bytes());
        let error = refusal(folder.path());
        assert!(error.contains(part) && error.contains(&*folder.path().to_string_lossy()), "{field}: {error}");
    }
}

#[test]
fn other_names_and_newer_fields_of_the_same_maths_are_taken() {
    for change in [
        |config: &mut Value| config["model_type"] = json!("yi"),
        |config: &mut Value| config["sliding_window"] = json!(4096),
        |config: &mut Value| {
            config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 10000.0 });
            config.as_object_mut().unwrap().remove("rope_theta");
        },
        |config: &mut Value| config["unheard_of"] = json!(1), // Llama's class reads no such field
    ] {
        let folder = copy("llama");
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        write(&path, config.to_string().as_bytes());
        let model = crate::import(folder.path());
        assert_eq!(model.header.config.rope, crate::import(copy("llama").path()).header.config.rope);
    }
}

/// A safetensors file with this header and as many bytes of tensors.
fn safetensors(header: &str, bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + bytes, 0);
    file
}

#[test]
fn headers_of_safetensors_that_lie_are_refused() {
    let tensor = |from: u64, to: u64| {
        format!("{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[{from},{to}]}}", (to - from) / 4)
    };
    let cases = [
        (u64::MAX.to_le_bytes().to_vec(), "18446744073709551615 bytes"),
        ((1u64 << 60).to_le_bytes().to_vec(), "1152921504606846976 bytes"),
        (safetensors(&"[".repeat(1 << 20), 0), "damaged"),
        (safetensors(&format!("{{\"a\":{},\"b\":{}}}", tensor(0, 8), tensor(4, 12)), 12), "damaged"),
        (safetensors(&format!("{{\"a\":{}}}", tensor(0, 1 << 60)), 8), "1152921504606846976 bytes of tensors"),
        (safetensors(&format!("{{\"a\":{}}}", tensor(0, 8)), 16), "speaks of 8 bytes"),
        (
            safetensors("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4),
            "damaged",
        ),
        (safetensors("{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4), "I8"),
    ];
    for (bytes, part) in cases {
        let folder = copy("llama");
        write(&folder.path().join("model.safetensors"), &bytes);
        let error = refusal(folder.path());
        assert!(error.contains(part) && error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn tensors_that_are_unknown_or_in_two_files_are_refused() {
    let folder = copy("llama3");
    let index = folder.path().join("model.safetensors.index.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    json["weight_map"]["model.layers.0.self_attn.q_proj.bias"] = json!("model-00001-of-00002.safetensors");
    write(&index, json.to_string().as_bytes());
    assert!(refusal(folder.path()).contains("q_proj.bias is in no file"));

    json["weight_map"].as_object_mut().unwrap().remove("model.layers.0.self_attn.q_proj.bias");
    json["weight_map"]["model.norm.weight"] = json!("../model.safetensors");
    write(&index, json.to_string().as_bytes());
    assert!(refusal(folder.path()).contains("is not in this folder"));

    let folder = copy("llama3");
    let [first, second] =
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].map(|name| folder.path().join(name));
    std::fs::copy(first, second).unwrap();
    assert!(refusal(folder.path()).contains("says that tensor"));
}

#[test]
fn json_of_any_depth_and_length_is_refused() {
    for (file, bytes) in [
        ("config.json", "[".repeat(900_000)),
        ("config.json", format!("{{\"a\":{}1", "{\"a\":".repeat(100_000))),
        ("config.json", " ".repeat(2 << 20)),
        ("tokenizer.json", "[".repeat(1 << 20)),
        ("tokenizer.json", format!("{{\"model\":[{}0]}}", "0,".repeat(5 << 20))),
        ("tokenizer_config.json", "{\"a\":".repeat(100_000)),
        ("generation_config.json", "{".into()),
    ] {
        let folder = copy("llama");
        write(&folder.path().join(file), bytes.as_bytes());
        let error = refusal(folder.path());
        assert!(error.contains(file), "{error}");
        assert!(error.len() < 500, "{} bytes", error.len());
    }
}

/// An archive with these entries; a method other than 0 claims compression.
fn archive(entries: &[(&str, &[u8])], method: u16) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let header = file.len() as u32;
        let sizes = [(bytes.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
        let common =
            [&[0; 2][..], &method.to_le_bytes(), &[0; 8], &sizes, &(name.len() as u16).to_le_bytes(), &[0; 2]].concat();
        file.extend(b"PK\x03\x04\x14\x00");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*bytes);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]); // comment, disk, attributes
        directory.extend(header.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// The refusal of a file of PyTorch.
fn refusal_of(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::with_suffix(".pt").unwrap();
    file.write_all(bytes).unwrap();
    let error = refusal(file.path());
    assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    error
}

#[test]
fn pickles_run_nothing_and_take_little() {
    let storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ";
    let tensor = |shape: &[u8]| {
        [
            b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(",
            &storage[..],
            b"K\x00",
            shape,
            b"\x89}tRs.",
        ]
        .concat()
    };
    let huge = [&b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85"[..]].concat();
    // Each step makes a tuple of the last one twice: 2^200 elements, if they were copied.
    let doubling = [&b"\x80\x02N"[..], &b"q\x00h\x00\x86".repeat(200), b"."].concat();
    let deep = [&b"\x80\x02N"[..], &b"\x85".repeat(1 << 20), b"."].concat();
    for (pickle, part) in [
        (&b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R."[..], "os.system"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "0x8c"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "ends too early"),
        (b"\x80\x02h\x07.", "value 7 was never made"),
        (b"\x80\x02t.", "mark is missing"),
        (b"\x80\x02((((.", "value is missing"),
        (b"\x80\x02", "ends too early"),
        (b"\x80\x02}.", "wo.weight is missing"),
        (b"\x80\x02K\x01.", "no dictionary"),
        (&doubling, "no dictionary"),
        (&deep, "no dictionary"),
        (&tensor(&huge), "too large"),
        (&tensor(b"K\x05\x85K\x01\x85"), "takes 20 bytes"),
        (&tensor(b"K\x02K\x02\x86K\x01K\x02\x86"), "not stored in order"),
    ] {
        let error = refusal_of(&archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 16])], 0));
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = refusal_of(&archive(&[("a/data.pkl", &vec![b')'; 3 << 20])], 0));
    assert!(error.contains("at most"), "{error}");
}

#[test]
fn archives_that_are_compressed_or_lie_are_refused() {
    let pickle = b"\x80\x02}.";
    let plain = archive(&[("a/data.pkl", pickle)], 0);
    assert!(refusal_of(&archive(&[("a/data.pkl", pickle)], 8)).contains("compressed (method 8)"));
    assert!(refusal_of(&archive(&[("a/data.pkl", pickle), ("a/data.pkl", pickle)], 0)).contains("there twice"));
    assert!(refusal_of(&archive(&[("a/data.pkl", pickle), ("b/data.pkl", pickle)], 0)).contains("two entries"));
    assert!(refusal_of(&archive(&[("a/other", pickle)], 0)).contains("no data.pkl"));
    assert!(refusal_of(&archive(&[("a/data.pkl", pickle), ("a/byteorder", b"big")], 0)).contains("byteorder is big"));
    assert!(refusal_of(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").contains("before PyTorch 1.6"));
    // The directory's fields, one by one, with other values.
    let directory = plain.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    for at in directory..plain.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = plain.clone();
            bytes[at] = value;
            refusal_of(&bytes);
        }
    }
}

/// A GGUF file of version 3 with these counts and this rest.
fn gguf(tensors: u64, fields: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF\x03\x00\x00\x00", &tensors.to_le_bytes()[..], &fields.to_le_bytes(), rest].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn gguf_files_that_claim_too_much_are_refused() {
    let list =
        |kind: u32, n: u64| [text("a"), [9u32, kind].map(u32::to_le_bytes).concat(), n.to_le_bytes().to_vec()].concat();
    let alignment = |n: u32| [text("general.alignment"), [4, n].map(u32::to_le_bytes).concat()].concat();
    let tensor = |name: &str, size: u64, offset: u64| {
        [
            text(name),
            1u32.to_le_bytes().to_vec(),
            size.to_le_bytes().to_vec(),
            0u32.to_le_bytes().to_vec(),
            offset.to_le_bytes().to_vec(),
        ]
        .concat()
    };
    let nested = [text("a"), [9u32, 9].map(u32::to_le_bytes).concat(), 1u64.to_le_bytes().to_vec()].concat();
    let nested = [nested, [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(100_000)].concat();
    for (bytes, part) in [
        (gguf(1 << 60, 0, &[]), "1152921504606846976 tensors"),
        (gguf(0, 1 << 60, &[]), "1152921504606846976 fields"),
        (gguf(0, 1, &(1u64 << 60).to_le_bytes()), "asks for 1152921504606846976 bytes"),
        (gguf(0, 1, &list(4, 1 << 60)), "list of 1152921504606846976"),
        (gguf(0, 1, &list(8, 1 << 60)), "list of 1152921504606846976"),
        (gguf(0, 1, &list(99, 1)), "type 99"),
        (gguf(0, 1, &nested), "too deep"),
        (gguf(0, 2, &[alignment(32), alignment(32)].concat()), "there twice"),
        (gguf(0, 1, &alignment(0)), "general.alignment is 0"),
        (gguf(0, 1, &alignment(3)), "general.alignment is 3"),
        (gguf(1, 0, &tensor("a", 1 << 62, 0)), "too large"),
        (gguf(1, 0, &tensor("a", 1, u64::MAX)), "offset"),
        (gguf(1, 0, &tensor("a", 1024, 0)), "run past the end"),
        (gguf(2, 0, &[tensor("a", 0, 0), tensor("a", 0, 0), vec![0; 64]].concat()), "there twice"),
        (gguf(0, 0, &[]), "general.architecture is \"\""),
        (b"GGUF\x04\x00\x00\x00".to_vec(), "version 4"),
        (b"GGUF".to_vec(), "cut short"),
    ] {
        let mut file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
        file.write_all(&bytes).unwrap();
        let error = refusal(file.path());
        assert!(error.contains(part) && error.contains(".gguf"), "{part}: {error}");
    }
}

#[test]
fn damaged_vocabularies_are_refused() {
    let model = std::fs::read(copy("llama").path().join("tokenizer.model")).unwrap();
    for len in cuts(model.len()) {
        let mut file = tempfile::NamedTempFile::with_suffix(".model").unwrap();
        file.write_all(&model[..len]).unwrap();
        // A cut between two pieces leaves a file that is whole, but for the pieces.
        if let Err(e) = open_tokenizer(file.path()) {
            assert!(format!("{e:#}").contains(".model"), "{e:#}");
        }
    }
    let folder = copy("llama");
    let config = folder.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["vocab_size"] = json!(3);
    write(&config, json.to_string().as_bytes());
    assert!(refusal(folder.path()).contains("embed_tokens"));
}

#[test]
fn places_that_hold_no_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = error(folder.path(), &Hints::default());
    assert!(error.contains("config.json") && error.contains("params.json"), "{error}");
    assert!(crate::error(&folder.path().join("absent"), &Hints::default()).contains("absent"));
    let text = folder.path().join("story.txt");
    write(&text, b"Once upon a time");
    assert!(refusal(&text).contains("story.txt"));
    let part = copy("meta");
    std::fs::rename(part.path().join("consolidated.01.pth"), part.path().join("consolidated.02.pth")).unwrap();
    assert!(refusal(part.path()).contains("consolidated.01.pth is missing"));
}
