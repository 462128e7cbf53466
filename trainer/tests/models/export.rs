//! Exports and their mistakes.

use std::fs;
use std::path::Path;

use infer_core::format::{Header, TensorName, Version, rotary_table};
use infer_core::{Config, MappedModel, Matrix, Rope, tokenizer};
use tempfile::TempDir;
use tests::random::RandomModel;
use tests::shared;

use crate::{fails, succeeds};

/// Files of shared/data in a folder of their own, under the names on the right.
fn copies(files: &[(&str, &str)]) -> Option<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in files {
        fs::write(folder.path().join(to), shared::bytes(&format!("data/models/{from}"))?).unwrap();
    }
    Some(folder)
}

/// A random model with a vocabulary, as model.bin and tokenizer.bin in a folder of its own.
fn random_model(config: Config) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.bin"), RandomModel::new(config, 7).to_file(Version::V1).bytes()).unwrap();
    let pieces = (0..config.vocab_size).map(|id| (-(id as f32), format!("p{id}")));
    let mut bytes = Vec::new();
    tokenizer::write(&mut bytes, 8, pieces.collect::<Vec<_>>()).unwrap();
    fs::write(folder.path().join("tokenizer.bin"), bytes).unwrap();
    folder
}

/// The values of a rotary table in a file of version 0.
fn table(file: &[u8], name: TensorName) -> Vec<f32> {
    let tensor = Header::parse(file).unwrap().layout().unwrap().get(name).unwrap();
    let bytes = &file[tensor.offset as usize..][..tensor.stride as usize];
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn a_model_comes_back_from_other_files_byte_for_byte() {
    let Some(folder) =
        copies(&[("stories260K/stories260K.bin", "stories.bin"), ("stories260K/tok512.bin", "tokenizer.bin")])
    else {
        return;
    };
    let folder = folder.path();
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let stories = read("stories.bin");
    let config = Header::parse(&stories).unwrap().config;
    let ours = rotary_table(&config, TensorName::FreqCisReal).unwrap();
    assert_ne!(table(&stories, TensorName::FreqCisReal), ours, "PyTorch's cosines have other last bits");
    // A folder of Hugging Face has no place for the tables: version 1, which has none, comes back.
    succeeds(folder, &["export", "stories.bin", "v1.bin", "--version", "1"]);
    let version_1 = read("v1.bin");
    for (out, version, whole) in
        [("out.gguf", &[][..], &stories), ("out.bin", &[], &stories), ("folder", &["--version", "1"], &version_1)]
    {
        succeeds(folder, &["export", "stories.bin", out]);
        let back = format!("from-{out}/model.bin");
        succeeds(folder, &[&["import", out, &back], version].concat());
        assert!(read(&back) == *whole, "{out}");
        assert!(read(&format!("from-{out}/tokenizer.bin")) == read("tokenizer.bin"), "{out}");
    }
    assert!(read("out.bin") == stories);
    // A shorter context keeps the first rows.
    succeeds(folder, &["import", "out.gguf", "short.bin", "--max-seq-len", "100"]);
    let short = table(&read("short.bin"), TensorName::FreqCisReal);
    assert_eq!(short, table(&stories, TensorName::FreqCisReal)[..short.len()]);
    assert_eq!(short.len(), 100 * 4);
}

/// A model without tables gets those that are computed, and no keys. So does one with tables of
/// NaN, which no reader has minded.
#[test]
fn tables_that_say_nothing_are_not_carried() {
    let config = Config::new(16, 64, 1, 4, 300, 16);
    let scene = random_model(config);
    let folder = scene.path();
    let file = RandomModel::new(config, 7).to_file(Version::V0); // its tables are NaN
    assert!(table(file.bytes(), TensorName::FreqCisImag)[0].is_nan());
    fs::write(folder.join("nan.bin"), file.bytes()).unwrap();
    for (model, gguf) in [("nan.bin", "nan.gguf"), ("model.bin", "computed.gguf")] {
        succeeds(folder, &["export", model, gguf]);
        let bytes = fs::read(folder.join(gguf)).unwrap();
        assert!(!bytes.windows(7).any(|bytes| bytes == b"llama2c"), "{gguf}");
        let back = format!("from-{gguf}/model.bin");
        succeeds(folder, &["import", gguf, &back]);
        let back = fs::read(folder.join(back)).unwrap();
        for name in [TensorName::FreqCisReal, TensorName::FreqCisImag] {
            assert_eq!(table(&back, name), rotary_table(&config, name).unwrap(), "{gguf}");
        }
    }
}

#[test]
fn damaged_tables_of_a_gguf_are_refused() {
    let config = Config::new(16, 64, 1, 4, 300, 16);
    let scene = random_model(config);
    let folder = scene.path();
    let mut model = RandomModel::new(config, 7);
    model.tensor_mut(TensorName::FreqCisImag).fill(0.25);
    fs::write(folder.join("model.bin"), model.to_file(Version::V0).bytes()).unwrap();
    succeeds(folder, &["export", "model.bin", "out.gguf"]);
    let whole = fs::read(folder.join("out.gguf")).unwrap();
    // Behind the key of a list come its type (9), the type of the elements, their number and they
    // themselves; behind that of a number come its type and the number.
    for (key, at, value, parts) in [
        ("llama2c.freq_cis_imag", 16, f32::NAN.to_bits(), &["freq_cis_imag: value 0 is not a finite number"][..]),
        ("llama2c.freq_cis_imag", 4, 4, &["freq_cis_imag is ListOfType(4)", "a list of f32"]),
        ("llama.context_length", 4, 17, &["freq_cis_imag has 32 values", "export it again"]),
    ] {
        let mut damaged = whole.clone();
        let start = whole.windows(key.len()).position(|bytes| bytes == key.as_bytes()).unwrap() + key.len() + at;
        damaged[start..][..4].copy_from_slice(&value.to_le_bytes());
        fs::write(folder.join("damaged.gguf"), damaged).unwrap();
        let error = fails(folder, 1, &["import", "damaged.gguf", "back/model.bin"]);
        assert!(error.contains("damaged.gguf") && parts.iter().all(|part| error.contains(part)), "{error}");
    }
    succeeds(folder, &["import", "out.gguf", "whole/model.bin"]);
    let back = fs::read(folder.join("whole/model.bin")).unwrap();
    assert!(table(&back, TensorName::FreqCisImag).iter().all(|x| *x == 0.25));
}

/// int8 in groups that cross rows, as llama2.c writes it, comes out as the f32 that it stands for.
#[test]
fn int8_is_exported_as_f32() {
    let name = "stories260K/stories260K.export_v2_q80_gs8.bin";
    let Some(folder) = copies(&[(name, "int8.bin"), ("stories260K/tok512.bin", "tokenizer.bin")]) else { return };
    let folder = folder.path();
    succeeds(folder, &["export", "int8.bin", "f32.bin", "--version", "1"]);
    let bytes = fs::read(folder.join("int8.bin")).unwrap();
    let header = Header::parse_any_group(&bytes).unwrap();
    let w2 = header.layout().unwrap().get(TensorName::W2).unwrap();
    let at = w2.offset as usize;
    let (q, scales) = bytes[at..][..w2.stride as usize].split_at(w2.rows * w2.cols);
    let scale = |i: usize| f32::from_le_bytes(scales[i / 8 * 4..][..4].try_into().unwrap());
    let want: Vec<f32> = q.iter().enumerate().map(|(i, q)| f32::from(*q as i8) * scale(i)).collect();
    let file = open(&folder.join("f32.bin"));
    let Matrix::F32 { w, .. } = file.model().unwrap().layer(0).unwrap().w2 else { panic!("not f32") };
    assert_eq!(w, want);
}

#[allow(unsafe_code)]
fn open(path: &Path) -> MappedModel {
    // SAFETY: MappedModel::open requires that nobody changes the file. It is in this test's own
    // folder.
    unsafe { MappedModel::open(path) }.unwrap()
}

#[test]
fn mistakes_are_one_line_that_says_what_to_do() {
    let scene = random_model(Config::new(16, 64, 1, 4, 300, 16));
    let folder = scene.path();
    fs::create_dir(folder.join("full")).unwrap();
    for name in ["full/file", "taken.gguf", "no.bin"] {
        fs::write(folder.join(name), "something").unwrap();
    }
    fs::create_dir(folder.join("alone")).unwrap();
    fs::copy(folder.join("model.bin"), folder.join("alone/model.bin")).unwrap();
    let cut = fs::read(folder.join("model.bin")).unwrap();
    fs::write(folder.join("cut.bin"), &cut[..cut.len() - 1]).unwrap();
    for (status, arguments, parts) in [
        (2, &["model.bin", "out.onnx"][..], &["out.onnx: nothing here writes .onnx", "OUT.gguf"][..]),
        (2, &["model.bin", "full"], &["full is there: delete it"]),
        (2, &["model.bin", "taken.gguf"], &["taken.gguf is there: delete it"]),
        (1, &["model.bin", "model.bin"], &["model.bin is read here"]),
        (2, &["model.bin", "out.bin", "--type", "f16"], &["--type is for OUT.gguf and folders"]),
        (2, &["model.bin", "out.gguf", "--version", "1"], &["--version is for OUT.bin"]),
        (2, &["model.bin", "out/", "--type", "q8_0"], &["--type q8_0 is for OUT.gguf"]),
        (1, &["model.bin", "out.gguf", "--type", "q8_0"], &["rows of tok_emb have 16 weights", "--type f16 or f32"]),
        (1, &["model.bin", "no.bin"], &["no.bin is no model file"]),
        (1, &["alone/model.bin", "out.gguf"], &["no tokenizer.bin or tokenizer.json beside alone/model.bin"]),
        (1, &["alone/model.bin", "out/"], &["no tokenizer.bin or tokenizer.json beside alone/model.bin"]),
        (1, &["nowhere.bin", "out.gguf"], &["model nowhere.bin", "No such file"]),
        (1, &["cut.bin", "out.gguf"], &["model cut.bin", "bytes"]),
        (1, &["no.bin", "out.gguf"], &["model no.bin"]),
        (1, &["full", "out.gguf"], &["full holds neither a checkpoint"]),
    ] {
        let error = fails(folder, status, &[&["export"], arguments].concat());
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
    }
    let left = fs::read_dir(folder).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("out") || name.to_string_lossy().starts_with('.')
    });
    assert_eq!(left.count(), 0, "nothing is left of them");
    assert_eq!(fs::read(folder.join("taken.gguf")).unwrap(), b"something");
}

#[test]
fn version_0_is_for_plain_models() {
    let scene = random_model(Config::new(16, 64, 1, 4, 300, 16).with_rope(Rope::new(500000.0)));
    let folder = scene.path();
    let error = fails(folder, 1, &["export", "model.bin", "out.bin", "--version", "0"]);
    assert!(error.contains("version"), "{error}");
    succeeds(folder, &["export", "model.bin", "out.bin"]);
    assert_eq!(fs::read(folder.join("out.bin")).unwrap(), fs::read(folder.join("model.bin")).unwrap());
}

#[test]
fn a_byte_level_vocabulary_needs_rules_with_a_name() {
    let scene = random_model(Config::new(16, 64, 1, 4, 300, 16));
    let folder = scene.path();
    fs::remove_file(folder.join("tokenizer.bin")).unwrap();
    let rules = |rules: &str| {
        let json =
            format!(r#"{{"pre_tokenizer": {rules}, "model": {{"type": "BPE", "vocab": {{"a": 299}}, "merges": []}}}}"#);
        fs::write(folder.join("tokenizer.json"), json).unwrap();
    };
    rules(r#"{"type": "Whitespace"}"#);
    let error = fails(folder, 1, &["export", "model.bin", "out.gguf"]);
    assert!(error.contains(r#"no name for the pre_tokenizer {"type":"Whitespace"}"#), "{error}");
    let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#;
    rules(byte_level);
    succeeds(folder, &["export", "model.bin", "out.gguf"]);
    fs::write(
        folder.join("tokenizer.json"),
        r#"{"pre_tokenizer": null, "model": {"vocab": {"a": 300}}}"#.replace("null", byte_level),
    )
    .unwrap();
    let error = fails(folder, 1, &["export", "model.bin", "out2.gguf"]);
    assert!(error.contains("token \"a\" has no id below the 300 of the model"), "{error}");
}
