//! The other commands: tokenize, inspect, quantize, perplexity and bench.

use infer_core::capi::{INFER_PARTS, infer_limits, infer_plan};
use infer_core::format::{Header, SpecialTokens, TemplateName};
use infer_core::{Rope, RopeScaling};
use serde::Deserialize;

use super::*;

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
    assert_eq!(number(&output, ".cold    keys and values"), 655360.0);
    let q8 = shared::file("data/models/stories260K/stories260K_q80_g4.bin").unwrap();
    assert!(stdout(&run(&["inspect", q8.to_str().unwrap()])).contains("int8, group size 4"));
    assert_fails(&run(&["inspect", &model, "--plan", "max_seq=513"]), 2, &["max_seq=513", "1 to 512"]);
    let gs8 = shared::file("data/models/stories260K/stories260K.export_v2_q80_gs8.bin").unwrap();
    assert_fails(&run(&["inspect", gs8.to_str().unwrap()]), 1, &["group_size 8", "dim 64", "hidden_dim 172"]);
}

#[test]
fn inspect_shows_what_a_plain_file_cannot_say() {
    let folder = scratch("inspect_extension");
    let path = folder.join("model.bin");
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len: 8192 };
    let inspect = |scaling, norm_eps, bos: &[u32], eos: &[u32], template| {
        let config =
            config(8, 12, 1, 2, 1).with_rope(Rope::new(500000.0).with_scaling(scaling)).with_norm_eps(norm_eps);
        let header = Header::new(Version::V1, config)
            .with_tokens(SpecialTokens::new(bos, eos).unwrap())
            .with_template(TemplateName::new(template).unwrap());
        let mut file = RandomModel::new(config, 3).to_file(Version::V1).bytes().to_vec();
        file[..header.size()].copy_from_slice(&header.to_bytes().unwrap());
        std::fs::write(&path, file).unwrap();
        let path = path.to_str().unwrap();
        (stdout(&run(&["inspect", path])).to_owned(), json(&run(&["inspect", path, "--json"])))
    };
    let (table, report) = inspect(llama3, 1e-6, &[], &[7, 299], "llama3");
    let lines = "rotary base    500000, scaled as Llama 3's by 8 (frequency factors 1 and 4, 8192 positions)\n\
                 norm epsilon   1e-6\nBOS            none\nEOS            7 299\ntemplate       llama3\n";
    assert!(table.contains(lines), "{table}");
    assert_eq!((&report["rope_theta"], &report["bos"]), (&500000.0.into(), &serde_json::json!([])));
    assert_eq!((&report["eos"], &report["template"]), (&serde_json::json!([7, 299]), &"llama3".into()));
    assert_eq!(report["norm_eps"].as_f64().unwrap() as f32, 1e-6);
    let scaling = serde_json::json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(report["rope_scaling"], scaling);

    let (table, report) = inspect(RopeScaling::Linear { factor: 2.5 }, 1e-5, &[1, 5], &[], "");
    let lines = "rotary base    500000, scaled linearly by 2.5\nnorm epsilon   1e-5\nBOS            1 5\n\
                 EOS            none\ntemplate       none\n";
    assert!(table.contains(lines), "{table}");
    assert_eq!(report["rope_scaling"], serde_json::json!({ "rope_type": "linear", "factor": 2.5 }));
    assert_eq!(report["template"], serde_json::Value::Null);

    let (_, plain) = random_model("inspect_plain", |_| {});
    assert!(!stdout(&run(&["inspect", &plain])).contains("rotary"));
    let report = json(&run(&["inspect", &plain, "--json"]));
    assert_eq!((&report["rope_theta"], &report["rope_scaling"]), (&10000.0.into(), &serde_json::Value::Null));
}

#[test]
fn inspect_plans_what_firmware_links() {
    let folder = scratch("plan");
    let int8 = infer_core::WeightType::Q8 { group_size: 16 };
    let shape = Config::new(48, 32, 2, 6, 300, 40).with_kv_heads(2).with_weights(int8);
    let (model, file) = (folder.join("model.bin"), RandomModel::new(shape, 3).to_file(Version::V2));
    std::fs::write(&model, file.bytes()).unwrap();
    let model = model.to_str().unwrap();
    let inspect = |plan: &str| run(&["inspect", model, "--plan", plan]);
    let has = |output: &Output, rows: &[(&str, usize)]| {
        for (row, bytes) in rows {
            assert_eq!(number(output, row), *bytes as f64, "{row} in\n{}", stdout(output));
        }
    };
    let flash = file.bytes().len().next_multiple_of(16) + 300 * 12;
    has(&inspect("max_seq=37"), &[("flash    in all, without code and stack", flash)]);

    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&[" "], 300)).unwrap();
    let tokenizer = std::fs::metadata(folder.join("tokenizer.bin")).unwrap().len().next_multiple_of(16) as usize;
    // x, xb and q; hb and hb2; cos and sin; scales of 6 queries; weights of 3 heads; frequencies;
    // logits.
    let hot_f32 = 4 * (3 * 48 + 2 * 32 + 8 + 6 + 3 * 40 + 4 + 300);
    let hot_i8 = 2 * 48 + 4;
    // Keys and values of 2 layers, 40 positions in whole blocks and 16 dimensions; 22 tokens, of 4
    // and 20 bytes.
    let (keys_and_values, scales) = (2 * 2 * 40 * 16, 2 * 2 * 40 * 4);
    let rows = [
        (".model   tokenizer.bin beside it, the same", tokenizer),
        ("flash    in all, without code and stack", flash + tokenizer),
        (".hot     activations, f32", hot_f32),
        (".hot     activations, int8, to whole words", hot_i8),
        (".hot     sampler", 300 * 8),
        (".cold    keys and values", keys_and_values),
        (".cold    scales of keys and values", scales),
        (".cold    tokens of the prompt", 22 * 4),
        (".cold    merging of the prompt", 22 * 20),
        ("RAM      in all, without code and stack", hot_f32 + hot_i8 + 300 * 8 + keys_and_values + scales + 22 * 24),
    ];
    has(&inspect("max_seq=37,kv=int8,prompt=20"), &rows);

    let header = run(&["inspect", model, "--plan", "max_seq=37,kv=int8,prompt=20", "--c"]);
    let mut expected =
        vec!["MODEL_MAX_SEQ 37".to_owned(), "MODEL_PROMPT_BYTES 20".into(), "MODEL_KV INFER_KV_I8".into()];
    let parts = ["HOT_F32", "HOT_I8", "KV_VALUES", "KV_SCALES", "SAMPLER", "TOKENIZER", "MERGE"];
    let bytes = parts_in_c(file.bytes(), infer_limits { max_seq: 37, batch: 1, prompt_bytes: 20, kv: 1 });
    expected.extend(parts.iter().zip(bytes).map(|(part, bytes)| format!("MODEL_{part}_BYTES {bytes}")));
    let defined = stdout(&header).lines().filter_map(|line| line.strip_prefix("#define "));
    assert_eq!(defined.collect::<Vec<_>>(), expected);

    for (plan, words) in [
        ("max_seq=x", &["max_seq=x", "number"][..]),
        ("prompt=-1", &["prompt=-1", "number"]),
        ("kv=int4", &["kv=int4", "int8"]),
        ("batch=3", &["batch=3", "max_seq"]),
        ("max_seq=0", &["max_seq=0", "1 to 40"]),
    ] {
        assert_fails(&inspect(plan), 2, words);
    }
    let (_, heads_of_2) = random_model("plan_heads_of_2", |_| {});
    assert_fails(&run(&["inspect", &heads_of_2, "--plan", "kv=int8"]), 1, &["model.bin", "multiple of 4"]);
}

/// The memory that a C program is told of at run time.
#[allow(unsafe_code)]
fn parts_in_c(model: &[u8], limits: infer_limits) -> [usize; INFER_PARTS] {
    let mut memory = std::mem::MaybeUninit::uninit();
    // SAFETY: the model pointer and length are those of a slice, and the other pointers are those
    // of local variables of the right types.
    let memory = unsafe {
        assert_eq!(infer_plan(model.as_ptr().cast(), model.len(), &limits, memory.as_mut_ptr()).code, 0);
        memory.assume_init()
    };
    memory.part.map(|part| part.bytes)
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
    // Groups of 8 that cross rows: the runner refuses them, and the rewritten file reads as well as
    // the others.
    let crossing = quantize("stories260K.export_v2_q80_gs8.bin");
    let text = stories_text();
    let output = run(&["perplexity", crossing.to_str().unwrap(), &text, "-z", &tok, "--windows", "4"]);
    let original = run(&["perplexity", &v0, &text, "-z", &tok, "--windows", "4"]);
    let (got, want) = (number(&output, "nats per token"), number(&original, "nats per token"));
    assert!((got / want - 1.0).abs() < 0.005, "{got} instead of {want}");
    // The folder holds nothing but the files that were asked for.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
}

#[test]
fn models_without_rotary_tables_are_like_those_with_them() {
    use infer_core::format::{Header, TensorName::*};
    for shared_classifier in [true, false] {
        let folder = scratch("bare");
        let shared = config(8, 16, 2, 4, 2);
        let shape = if shared_classifier { shared } else { shared.with_own_classifier() };
        let whole = RandomModel::new(shape, 3).to_file(Version::V0).bytes().to_vec();
        let layout = Header::parse(&whole).unwrap().layout().unwrap();
        let [from, to] = [FreqCisReal, FreqCisImag].map(|name| layout.get(name).unwrap());
        let bare = [&whole[..from.offset as usize], &whole[(to.offset + to.bytes()) as usize..]].concat();
        std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&[" ", "a", "b", " a"], 300)).unwrap();
        let results = [("whole", whole), ("bare", bare.clone())].map(|(name, bytes)| {
            let [model, int8] = [name, "int8"].map(|name| folder.join(name).to_str().unwrap().to_owned());
            std::fs::write(&model, bytes).unwrap();
            let inspected = run(&["inspect", &model]);
            assert_eq!(stdout(&inspected).contains("freq_cis"), name == "whole", "{}", stdout(&inspected));
            stdout(&run(&["quantize", &model, &int8]));
            (stdout(&run(&[&model, "-s", "5", "-n", "30"])).to_owned(), std::fs::read(int8).unwrap())
        });
        assert_eq!(results[0], results[1]);
        let cut = folder.join("cut.bin");
        std::fs::write(&cut, &bare[..bare.len() - 4]).unwrap();
        assert_fails(&run(&[cut.to_str().unwrap()]), 1, &["cut.bin", "cut short"]);
    }
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
    assert_fails(
        &run(&["quantize", &model, out_name]),
        1,
        &["w3 of layer 0", "a weight of group 1 is not a finite number"],
    );
    let mut nan = RandomModel::new(config(8, 12, 1, 2, 1), 3);
    nan.tensor_mut(infer_core::format::TensorName::RmsFfn)[5] = f32::NAN;
    std::fs::write(&model, nan.to_file(Version::V0).bytes()).unwrap();
    assert_fails(&run(&["quantize", &model, out_name]), 1, &["rms_ffn of layer 0", "weight 5 is not a finite number"]);
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
fn int8_kv_costs_at_most_one_percent_of_perplexity() {
    let Some((model, tok)) = stories() else { return };
    let perplexity = |kv: &str| {
        let output = run(&["perplexity", &model, &stories_text(), "-z", &tok, "--windows", "20", "--kv", kv]);
        number(&output, "perplexity")
    };
    let (f32, int8) = (perplexity("f32"), perplexity("int8"));
    assert!(int8 != f32 && int8 / f32 < 1.01, "{int8} instead of {f32}");
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
        assert_eq!(bench(&[])["threads"], 1, "a second thread makes a small model slower");
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
