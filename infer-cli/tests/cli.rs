//! The program as a person runs it: golden outputs of llama2.c, and what bad input gets.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use infer_core::format::Version;
use serde::Deserialize;
use tests::random::{RandomModel, config};
use tests::shared;

fn cli() -> Command {
    Command::new(env!("CARGO_BIN_EXE_infer-cli"))
}

fn run(args: &[&str]) -> Output {
    cli().args(args).stdin(Stdio::null()).output().unwrap()
}

fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    let pipes = cli().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = pipes.unwrap();
    let _ = child.stdin.take().unwrap().write_all(input); // a program that fails early does not read it
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

/// One clear message: the exit code, no panic, and all of these words.
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

/// Paths of a real model and its tokenizer.
fn stories() -> Option<(String, String)> {
    let path = |name: &str| shared::file(&format!("data/models/stories260K/{name}")).map(|p| p.display().to_string());
    Some((path("stories260K.bin")?, path("tok512.bin")?))
}

/// A folder of its own for a test's files, empty.
fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A tokenizer.bin whose tokens from 259 on are these pieces.
fn tokenizer_file(pieces: &[&str], vocab_size: usize) -> Vec<u8> {
    let mut all: Vec<String> = ["<unk>", "\n<s>\n", "\n</s>\n"].map(String::from).to_vec();
    all.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    all.extend(pieces.iter().map(|piece| piece.to_string()));
    all.resize(vocab_size, "filler".into());
    let mut bytes = 27u32.to_le_bytes().to_vec();
    for (i, piece) in all.iter().enumerate() {
        bytes.extend((-(i as f32)).to_le_bytes());
        bytes.extend((piece.len() as u32).to_le_bytes());
        bytes.extend(piece.as_bytes());
    }
    bytes
}

/// A random model with tokenizer.bin beside it, changed by `change`.
fn random_model(test: &str, change: impl FnOnce(&mut RandomModel)) -> (PathBuf, String) {
    let folder = scratch(test);
    let mut model = RandomModel::new(config(8, 5, 2, 4, 2), 3);
    change(&mut model);
    let path = folder.join("model.bin");
    std::fs::write(&path, model.to_file(Version::V0).bytes()).unwrap();
    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&[" ", "a", "b", " a"], 300)).unwrap();
    (folder, path.display().to_string())
}

#[derive(Deserialize)]
struct Case {
    model: String,
    t: f32,
    p: f32,
    s: u64,
    n: usize,
    #[serde(default)]
    i: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    stdin: String,
    stdout: String,
}

#[test]
fn stories_of_llama2c_are_told_byte_for_byte() {
    for (golden, count) in [("golden/llama2c_f32.jsonl", 15), ("golden/llama2c_chat.jsonl", 3)] {
        let Some(cases) = shared::json_lines::<Case>(golden) else { return };
        assert!(cases.len() >= count, "{golden} has lost cases");
        for case in cases {
            let (model, tokenizer) = match case.model.as_str() {
                "stories260K.bin" => ("stories260K/stories260K.bin", "stories260K/tok512.bin"),
                "model5000.bin" => ("tok105/model5000.bin", "tok105/tok105.bin"),
                other => panic!("unknown model {other}"),
            };
            let [model, tokenizer] = [model, tokenizer].map(|f| shared::file(&format!("data/models/{f}")).unwrap());
            let mut command = cli();
            command.arg(model).arg("-z").arg(tokenizer);
            for (flag, value) in [("-t", case.t.to_string()), ("-p", case.p.to_string()), ("-s", case.s.to_string())] {
                command.args([flag, &value]);
            }
            command.args(["-n", &case.n.to_string()]);
            if let Some(prompt) = &case.i {
                command.args(["-i", prompt]);
            }
            if let Some(system) = &case.y {
                command.args(["-m", "chat", "-y", system]);
            }
            let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            let mut child = pipes.unwrap();
            child.stdin.take().unwrap().write_all(case.stdin.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(stdout(&output), case.stdout, "{} -t {} -s {} -i {:?}", case.model, case.t, case.s, case.i);
            assert!(String::from_utf8_lossy(&output.stderr).starts_with("achieved tok/s: ") || case.y.is_some());
        }
    }
}

#[test]
fn long_names_and_the_older_form_do_the_same() {
    let Some((model, tok)) = stories() else { return };
    let short = run(&[&model, "-z", &tok, "-t", "0.5", "-p", "0.8", "-s", "3", "-n", "30", "-i", "One day"]);
    let long = run(&[
        "--temperature",
        "0.5",
        "--top-p=0.8",
        "--seed",
        "3",
        "--steps",
        "30",
        "--prompt",
        "One day",
        "--tokenizer",
        &tok,
        "--mode",
        "generate",
        &model,
    ]);
    let positional = run(&[&model, "0.5", "30", "One day", "-z", &tok, "-p", "0.8", "-s", "3"]);
    assert!(stdout(&short).starts_with("One day"));
    assert_eq!(stdout(&short), stdout(&long));
    assert_eq!(stdout(&short), stdout(&positional));
}

#[test]
fn tokenizer_beside_the_model_is_the_default() {
    let (_, model) = random_model("default_tokenizer", |_| {});
    assert!(!stdout(&run(&[&model, "-s", "1", "-n", "20"])).is_empty());
}

#[test]
fn the_clock_seeds_differently() {
    let (_, model) = random_model("clock", |_| {});
    let stories: Vec<Vec<u8>> = (0..4).map(|_| run(&[&model, "-n", "40"]).stdout).collect();
    assert!(stories.iter().any(|story| *story != stories[0]), "four equal stories");
}

#[test]
fn no_argument_prints_help() {
    let output = run(&[]);
    assert!(stdout(&output).contains("Usage: infer-cli"));
    assert!(stdout(&run(&["--help"])).contains("--temperature"));
}

#[test]
fn tokenize_prints_ids_on_one_line() {
    let Some((_, tok)) = stories() else { return };
    let output = run(&["tokenize", "-z", &tok, "Once upon a time"]);
    assert_eq!(stdout(&output), "1 403 407 261 378\n");
    assert_eq!(run_with_input(&["tokenize", "-z", &tok], b"Once upon a time").stdout, output.stdout);
    assert_eq!(stdout(&run(&["tokenize", "-z", &tok, ""])), "1\n");
    assert_fails(&run_with_input(&["tokenize", "-z", &tok], b"ab\xff"), 2, &["not valid UTF-8", "byte 2"]);
}

#[test]
fn inspect_shows_header_tensors_and_plan() {
    let Some((model, _)) = stories() else { return };
    let output = run(&["inspect", &model]);
    for line in ["version        0 (f32)", "hidden_dim     172", "file bytes     1056540", "wq                 5"] {
        assert!(stdout(&output).contains(line), "no {line:?} in\n{}", stdout(&output));
    }
    // 2 · 5 layers · 512 positions · 32 values · 4 bytes
    assert!(stdout(&output).contains("655360"), "{}", stdout(&output));
    assert!(stdout(&run(&["inspect", &model, "--max-seq", "128"])).contains("163840"));
    let q8 = shared::file("data/models/stories260K/stories260K_q80_g4.bin").unwrap();
    assert!(stdout(&run(&["inspect", q8.to_str().unwrap()])).contains("int8, group size 4"));
    assert_fails(&run(&["inspect", &model, "--max-seq", "513"]), 2, &["--max-seq 513", "1 to 512"]);
    let gs8 = shared::file("data/models/stories260K/stories260K.export_v2_q80_gs8.bin").unwrap();
    assert_fails(&run(&["inspect", gs8.to_str().unwrap()]), 1, &["group_size 8", "dim 64", "hidden_dim 172"]);
}

#[test]
fn values_out_of_range() {
    for (flag, value) in [
        ("-t", "abc"),
        ("-t", "-1"),
        ("-t", "nan"),
        ("-t", "inf"),
        ("-p", "1.5"),
        ("-p", "-0.1"),
        ("-s", "18446744073709551616"),
        ("-s", "-1"),
        ("-s", "1.5"),
        ("-n", "-5"),
        ("-n", "99999999999999999999999"),
        ("-m", "sing"),
    ] {
        assert_fails(&run(&["model.bin", flag, value]), 2, &[value]);
    }
    assert_fails(&run(&["model.bin", "-t"]), 2, &["--temperature"]);
    assert_fails(&run(&["model.bin", "-q", "1"]), 2, &["-q"]);
    assert_fails(&run(&["model.bin", "abc"]), 2, &["abc"]);
}

#[test]
fn prompts_that_do_not_fit() {
    let (_, model) = random_model("prompts", |_| {});
    let long = "a b ".repeat(40);
    for n in ["0", "256", "40"] {
        assert_fails(&run(&[&model, "-n", n, "-i", &long]), 2, &["prompt has", "tokens", "40 positions"]);
    }
    assert_fails(&run(&[&model, "-n", "2", "-i", "a b"]), 2, &["4 tokens", "2 positions"]);
    assert!(run(&[&model, "-n", "5", "-i", "a b"]).status.success(), "one position is left to tell");
    assert_fails(&run_with_input(&[&model, "-m", "chat", "-y", ""], long.as_bytes()), 2, &["message has", "40"]);
}

#[test]
fn chat_takes_turns_until_the_input_ends() {
    let (_, model) = random_model("chat", |_| {});
    let output = run_with_input(&[&model, "-m", "chat", "-y", "", "-s", "1"], b"");
    assert_eq!(stdout(&output), "User: \n");
    assert_fails(&run_with_input(&[&model, "-m", "chat", "-y", ""], b"\xff\n"), 2, &["not valid UTF-8"]);
}

#[test]
fn chat_answers_end_with_eos() {
    use infer_core::format::TensorName::*;
    let folder = scratch("chat_eos");
    // Layers add nothing, so that a token decides the next one: anything is followed by "a" (260), and "a" by EOS.
    let shape = infer_core::Config { shared_classifier: false, seq_len: 80, ..config(8, 5, 2, 4, 2) };
    let mut model = RandomModel::new(shape, 3);
    for tensor in [Wo, W2, TokEmb, Wcls] {
        model.tensor_mut(tensor).fill(0.0);
    }
    let row = |token: usize, dimension: usize| token * 8 + dimension;
    (0..300).for_each(|token| model.tensor_mut(TokEmb)[row(token, usize::from(token == 260))] = 1.0);
    model.tensor_mut(Wcls)[row(260, 0)] = 9.0;
    model.tensor_mut(Wcls)[row(2, 1)] = 9.0;
    let path = folder.join("model.bin");
    std::fs::write(&path, model.to_file(Version::V0).bytes()).unwrap();
    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&[" ", "a", "b", " a"], 300)).unwrap();
    let args = [path.to_str().unwrap(), "-m", "chat", "-y", "", "-t", "0"];
    // The first two turns take 19 and 20 positions: BOS, the message in its brackets (" a" is one token), "a" and EOS. The
    // third message does not fit, the fourth does.
    let input = format!("a\nb\n{}\na\n", "b".repeat(40));
    let output = run_with_input(&args, input.as_bytes());
    let turn = "User: Assistant: a\n";
    assert_eq!(stdout(&output), format!("{turn}{turn}User: {turn}User: \n"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("41 of 80 positions are left"));
}

#[test]
fn arguments_that_are_no_text() {
    let (_, model) = random_model("no_text", |_| {});
    let output = cli().args([OsStr::new(&model), OsStr::new("-i"), OsStr::from_bytes(b"a\xff")]).output().unwrap();
    assert_fails(&output, 2, &["not valid UTF-8", "a\u{fffd}"]);
}

#[test]
fn missing_and_damaged_files() {
    let (folder, model) = random_model("damaged", |_| {});
    assert_fails(&run(&["nowhere.bin"]), 1, &["nowhere.bin"]);
    assert_fails(&run(&[folder.to_str().unwrap()]), 1, &["not a regular file"]);
    let empty = folder.join("empty.bin");
    std::fs::write(&empty, b"").unwrap();
    assert_fails(&run(&[empty.to_str().unwrap()]), 1, &["empty.bin", "0 bytes"]);

    let whole = std::fs::read(&model).unwrap();
    for len in [1, 27, 28, 1000, whole.len() - 1] {
        std::fs::write(&model, &whole[..len]).unwrap();
        for args in [&[model.as_str()][..], &["inspect", &model]] {
            assert_fails(&run(args), 1, &["model.bin", &format!("{len} bytes"), "cut short"]);
        }
    }
    std::fs::write(&model, &whole).unwrap();

    let tokenizer = folder.join("tokenizer.bin");
    let whole = std::fs::read(&tokenizer).unwrap();
    std::fs::write(&tokenizer, &whole[..whole.len() - 1]).unwrap();
    assert_fails(&run(&[&model]), 1, &["tokenizer.bin", "token 299 of 300"]);
    std::fs::write(&tokenizer, tokenizer_file(&[], 299)).unwrap();
    assert_fails(&run(&[&model]), 1, &["token 299 of 300"]);
    std::fs::remove_file(&tokenizer).unwrap();
    assert_fails(&run(&[&model]), 1, &["tokenizer.bin", "-z"]);
    std::fs::write(&tokenizer, tokenizer_file(&[], 301)).unwrap();
    let output = run(&[&model, "-n", "5"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: "), "a larger vocabulary goes unnoticed");
}

#[test]
fn damaged_weights_end_the_story_with_an_error() {
    let nan = |model: &mut RandomModel| model.tensor_mut(infer_core::format::TensorName::W2)[17] = f32::NAN;
    let (_, model) = random_model("nan", nan);
    assert_fails(&run(&[&model, "-t", "0"]), 1, &["model.bin", "not a finite number", "damaged"]);
}

#[test]
fn a_context_too_large_for_memory_is_refused() {
    let folder = scratch("huge_context");
    // 2^31 positions of 512 layers of 32 keys and values: 2^48 bytes, more than a process can have.
    let mut file = RandomModel::new(config(32, 2, 512, 1, 1), 3).to_file(Version::V1).bytes().to_vec();
    file[32..36].copy_from_slice(&i32::MAX.to_le_bytes()); // seq_len, of which version 1 stores nothing
    let model = folder.join("model.bin");
    std::fs::write(&model, file).unwrap();
    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&[" "], 300)).unwrap();
    let model = model.to_str().unwrap();
    assert!(run(&[model, "-n", "9"]).status.success(), "a small run needs a small cache");
    assert_fails(&run(&[model, "-n", "0"]), 1, &["KV cache", "-n"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let Some((model, tok)) = stories() else { return };
    let mut command = cli();
    command.args([&model, "-z", &tok, "-t", "0", "-n", "512"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn stories_text() -> String {
    shared::file("data/text/tinystories_valid.txt").unwrap().display().to_string()
}

/// The number behind this label in the program's table.
fn number(output: &Output, label: &str) -> f64 {
    let line = stdout(output).lines().find(|line| line.starts_with(label)).expect(label);
    line[label.len()..].split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn quantize_gives_llama2c_s_file_from_every_version() {
    let Some((v0, tok)) = stories() else { return };
    let folder = scratch("quantize");
    let models = Path::new(&v0).parent().unwrap().to_path_buf();
    let want = std::fs::read(models.join("stories260K_q80_g4.bin")).unwrap();
    let quantize = |name: &str| {
        let out = folder.join(name);
        let output = run(&["quantize", models.join(name).to_str().unwrap(), out.to_str().unwrap()]);
        stdout(&output);
        out
    };
    for name in ["stories260K.bin", "stories260K.export_v1.bin"] {
        assert!(std::fs::read(quantize(name)).unwrap() == want, "{name}");
    }
    // Groups of 8 that cross rows: the runner refuses them, and the rewritten file reads as well as the others.
    let crossing = quantize("stories260K.export_v2_q80_gs8.bin");
    let text = stories_text();
    let output = run(&["perplexity", crossing.to_str().unwrap(), &text, "-z", &tok, "--windows", "4"]);
    let original = run(&["perplexity", &v0, &text, "-z", &tok, "--windows", "4"]);
    let (got, want) = (number(&output, "nats per token"), number(&original, "nats per token"));
    assert!((got / want - 1.0).abs() < 0.005, "{got} instead of {want}");
    // Nothing but the files that were asked for.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
}

#[test]
fn quantize_refuses_what_it_cannot_do_and_leaves_nothing() {
    let (folder, model) = random_model("quantize_refuses", |_| {}); // hidden_dim 5
    let out = folder.join("out.bin");
    std::fs::write(&out, b"an older file").unwrap();
    let out_name = out.to_str().unwrap();
    assert_fails(&run(&["quantize", &model, out_name]), 1, &["model.bin", "group_size", "hidden_dim 5"]);
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(&model, &whole[..whole.len() - 1]).unwrap();
    assert_fails(&run(&["quantize", &model, out_name]), 1, &["cut short"]);
    assert_fails(&run(&["quantize", "nowhere.bin", out_name]), 1, &["nowhere.bin"]);
    let mut nan = RandomModel::new(config(8, 12, 1, 2, 1), 3);
    nan.tensor_mut(infer_core::format::TensorName::W3)[5] = f32::NAN;
    std::fs::write(&model, nan.to_file(Version::V0).bytes()).unwrap();
    assert_fails(&run(&["quantize", &model, out_name]), 1, &["w3 of layer 0", "not a finite number"]);
    assert_fails(&run(&["quantize", &model, "nowhere/out.bin"]), 1, &["nowhere/out.bin"]);
    assert_fails(&run(&["quantize", &model, folder.to_str().unwrap()]), 2, &["not a regular file"]);
    assert_fails(&run(&["quantize", &model, "/dev/null"]), 2, &["/dev/null", "not a regular file"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"an older file");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "model.bin, tokenizer.bin and out.bin");
}

#[test]
fn quantize_of_damaged_groups() {
    let Some(path) = shared::file("data/models/stories260K/stories260K.export_v2_q80_gs8.bin") else { return };
    let folder = scratch("damaged_groups");
    let (model, out) = (folder.join("model.bin"), folder.join("out.bin"));
    let mut bytes = std::fs::read(path).unwrap();
    for group_size in [7u8, 9, 11] {
        bytes[37] = group_size;
        std::fs::write(&model, &bytes).unwrap();
        let output = run(&["quantize", model.to_str().unwrap(), out.to_str().unwrap()]);
        assert_fails(&output, 1, &["model.bin", &format!("group_size {group_size}")]);
    }
    assert!(!out.exists());
}

#[derive(Deserialize)]
struct Nll {
    float64: Vec<NllOfModel>,
    #[serde(rename = "llama2c_gcc_O2_first_60_windows_of_512")]
    llama2c: std::collections::BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct NllOfModel {
    window: usize,
    windows: usize,
    nats_per_token: f64,
    bytes: usize,
}

#[test]
fn perplexity_agrees_with_float64_and_with_llama2c() {
    let Some(golden) = shared::json::<Nll>("golden/nll_f64.json") else { return };
    let (model, tok) = stories().unwrap();
    let text = stories_text();
    let whole_context = golden.float64.iter().filter(|case| case.window == 512);
    assert_eq!(whole_context.clone().count(), 1);
    for case in whole_context {
        let output = run(&["perplexity", &model, &text, "-z", &tok]);
        assert_eq!(number(&output, "windows"), case.windows as f64);
        assert!(stdout(&output).contains(&format!("{} bytes", case.bytes)), "{}", stdout(&output));
        let nats = number(&output, "nats per token");
        assert!((nats / case.nats_per_token - 1.0).abs() < 1e-5, "{nats} instead of {}", case.nats_per_token);
    }
    let q8 = model.replace("stories260K.bin", "stories260K_q80_g4.bin");
    let output = run(&["perplexity", &q8, &text, "-z", &tok, "--windows", "60"]);
    let want = golden.llama2c["runq.c stories260K_q80_g4.bin"];
    let nats = number(&output, "nats per token");
    assert!((nats / want - 1.0).abs() < 1e-3, "{nats} instead of {want}");
}

#[test]
fn perplexity_of_texts_that_do_not_fit() {
    let (folder, model) = random_model("perplexity", |_| {});
    let text = folder.join("text.txt");
    let run_on = |content: &[u8], window: &str| {
        std::fs::write(&text, content).unwrap();
        run(&["perplexity", &model, text.to_str().unwrap(), "--window", window])
    };
    assert_fails(&run_on(b"a b a", "41"), 2, &["--window 41", "1 to 40"]);
    assert_fails(&run_on(b"a b a", "0"), 2, &["--window 0"]);
    assert_fails(&run_on(b"a b a", "40"), 2, &["text.txt", "41", "longer text"]);
    assert_fails(&run_on(b"a \xff", "1"), 1, &["text.txt", "not valid UTF-8 from byte 2"]);
    assert!(run_on(b"a b a", "2").status.success());
}

#[test]
fn bench_hashes_the_same_logits_on_every_kernel_and_thread_count() {
    for weights in ["f32", "int8"] {
        let bench = |more: &[&str]| -> serde_json::Value {
            let fixed = ["bench", "--shape", "260K", "--weights", weights, "--tokens", "20", "--repeat", "1", "--json"];
            serde_json::from_str(stdout(&run(&[&fixed, more].concat()))).unwrap()
        };
        let want = bench(&["--threads", "1", "--kernels", "scalar"]);
        assert_eq!(want["logits_hash"].as_str().unwrap().len(), 16);
        for kernels in infer_core::Kernels::all() {
            for (threads, batch) in [("1", "1"), ("2", "32"), ("3", "5")] {
                let got = bench(&["--threads", threads, "--batch", batch, "--kernels", kernels.name]);
                assert_eq!(got["logits_hash"], want["logits_hash"], "{} with {threads} threads", kernels.name);
                assert!(got["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
            }
        }
    }
    assert_fails(&run(&["bench", "--kernels", "mmx"]), 2, &["mmx", "scalar"]);
    assert_fails(&run(&["bench", "nowhere.bin"]), 1, &["nowhere.bin"]);
    assert_fails(&run(&["bench", "--threads", "0"]), 2, &["0"]);
}
