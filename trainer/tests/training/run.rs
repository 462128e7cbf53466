//! Whole runs train, evaluate, sample and export.

use std::fs;
use std::process::Stdio;

use crate::{Scene, train};

#[test]
fn a_run_leaves_a_model_that_tells_stories() {
    let scene = Scene::new();
    let log = scene.train("out", &["--export", "models/tiny.bin", "--always-save-checkpoint"]);
    for part in ["iter     50 | loss", "| lr", "ms |", "tok/s | mfu", "val loss", "a story:", "100 GFLOP/s, given"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    for name in ["out/loss.svg", "out/metrics.jsonl", "out/tensorboard", "models/tokenizer.bin"] {
        assert!(scene.path(name).exists(), "{name}");
    }
    assert_eq!(scene.checkpoints("out").len(), 10);
    let metrics = fs::read_to_string(scene.path("out/metrics.jsonl")).unwrap();
    assert!(scene.succeeds(&["eval", "out"]).contains("perplexity  "));
    for part in ["perplexity", "nats/byte"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(metrics.contains("\"val_perplexity\":") && metrics.contains("\"val_nats_per_byte\":"), "{metrics}");
    let from_model = scene.succeeds(&["sample", "models/tiny.bin", "--prompt", "The cat", "--steps", "30"]);
    assert!(from_model.starts_with("The cat"), "{from_model}");
    assert_eq!(scene.succeeds(&["sample", "out", "--prompt", "The cat", "--steps", "30"]), from_model);

    // Three ways give one loss: dfdx during training, infer-core with the file, and infer-core
    // with the checkpoint.
    let eval = |model: &str| scene.succeeds(&["eval", model, "--data", "out/tokens"]);
    assert_eq!(eval("out"), eval("models/tiny.bin"));
    assert_eq!(eval("out"), scene.succeeds(&["eval", "out"]), "the run knows its data");
    assert_eq!(
        scene.succeeds(&["eval", "out/checkpoints/step-00000050"]),
        scene.succeeds(&["eval", "out/checkpoints/step-00000050", "--data", "out/tokens"])
    );
    let number = |text: &str, key: &str| -> f64 {
        let at = text.rfind(key).unwrap() + key.len();
        text[at..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let all = scene.succeeds(&[
        "--config",
        "out/settings.toml",
        "--init-from",
        "models/tiny.bin",
        "--eval-only",
        "--eval-iters",
        "1000",
    ]);
    let (trained, evaluated) = (number(&all, "val loss"), number(&eval("out"), "nats per token"));
    assert!((trained - evaluated).abs() < 1e-3, "{trained} {evaluated}");
    let per_byte = number(&all, &format!("{:.2} | ", trained.exp()));
    assert!((per_byte - number(&eval("out"), "nats per byte")).abs() < 1e-3, "{all}");
    assert!(evaluated < 0.8 * 320f64.ln(), "it has learnt something: {evaluated}");

    let json = scene.succeeds(&["eval", "out", "--data", "out/tokens", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!((json["nats_per_token"].as_f64().unwrap() - evaluated).abs() < 1e-6, "{json}");
    assert_eq!(json["perplexity"].as_f64().unwrap(), json["nats_per_token"].as_f64().unwrap().exp());

    for (version, bytes) in [("0", 28), ("1", 256), ("2", 256)] {
        scene.succeeds(&["export", "out", "exported/model.bin", "--version", version]);
        assert!(fs::metadata(scene.path("exported/model.bin")).unwrap().len() > bytes);
        scene.succeeds(&["sample", "exported/model.bin", "--steps", "10"]);
    }
    let tuned = scene.train("tuned", &["--init-from", "models/tiny.bin", "--max-iters", "5", "--warmup-iters", "0"]);
    assert!(number(&tuned[..tuned.find("a story").unwrap()], "val loss") < 0.8 * 320f64.ln(), "{tuned}");
}

#[test]
fn distillation_learns_from_the_teacher() {
    let scene = Scene::new();
    scene.train("teacher", &["--max-iters", "150", "--dropout", "0", "--learning-rate", "1e-2"]);
    let taught = ["--teacher", "teacher/model.bin", "--teacher-weight", "1", "--teacher-stories", "20"];
    scene.train("student", &taught);
    let told = fs::read_dir(scene.path("student/teacher")).unwrap().next().unwrap().unwrap().path();
    let told = fs::read(told.join("stories-0-20.bin")).unwrap();
    assert_eq!(told.chunks_exact(2).filter(|token| token == &[1, 0]).count(), 20);
    // Another vocabulary is refused.
    let error = scene.fails(&[&train("wrong")[..], &["--vocab-size", "330"], &taught[..4]].concat());
    assert!(error.contains("330") && error.contains("320"), "{error}");
}

#[test]
fn no_iterations_export_the_model_as_it_is() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    let log = scene.train("same", &["--init-from", "out/model.bin", "--max-iters", "0"]);
    assert!(log.contains("as they were before the first step") && !log.contains("inf"), "{log}");
    assert_eq!(fs::read(scene.path("same/model.bin")).unwrap(), fs::read(scene.path("out/model.bin")).unwrap());
    let log = scene.train("out", &["--init-from", "resume", "--max-iters", "3"]);
    assert!(log.contains("nothing to train: the run is at step 5, max_iters is 3"), "{log}");
}

/// A text without separators is enough, in one file or in many, also after tries that failed.
#[test]
fn own_text_in_one_command() {
    let scene = Scene::new();
    let stories = fs::read_to_string(scene.path("stories.txt")).unwrap();
    let text = stories.replace("<|endoftext|>", "");
    fs::write(scene.path("big.txt"), &text).unwrap();
    fs::create_dir(scene.path("notes")).unwrap();
    for (i, part) in text.lines().collect::<Vec<_>>().chunks(text.lines().count().div_ceil(14)).enumerate() {
        fs::write(scene.path(&format!("notes/{i:02}.txt")), part.join("\r\n")).unwrap();
    }
    let one = ["--data", "big.txt", "--export", "out/model.bin"];
    let tiny = "--dim 16 --n-layers 1 --max-iters 2 --max-seq-len 32 --batch-size 2 --eval-iters 1 --peak-gflops 1";
    let tiny: Vec<&str> = tiny.split(' ').collect();
    let run = |more: &[&str]| scene.succeeds(&[&tiny, more].concat());
    // A try that fails at the vocabulary, and one that fails when there are shards, do no harm.
    let fails = |more: &[&str]| scene.fails(&[&tiny, &one[..], more].concat());
    assert!(fails(&["--vocab-size", "5000"]).contains("--vocab-size 5000: this text gives no more than"));
    let long = ["--vocab-size", "300", "--peak-gflops", "1", "--max-seq-len", "8000"];
    assert!(scene.fails(&[&one[..], &long].concat()).contains("a smaller --max-seq-len"));
    assert!(scene.path("out/tokens/shard00001.bin").exists());
    let log = run(&one);
    for part in
        ["split: training on big.txt, validation on the last tenth of the text", "which is all that this text gives"]
    {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(scene.path("out/model.bin").exists() && scene.path("out/tokenizer.bin").exists());
    let log = run(&["--data", "notes", "--out-dir", "notes-out", "--threads", "1"]);
    assert!(
        log.contains("training on 14 files from notes/00.txt on, validation on the last tenth of each file"),
        "{log}"
    );
    let log = run(&["--data", "big.txt", "--separator", "\\n", "--out-dir", "lines"]);
    assert!(log.contains("validation on one story in 20"), "{log}");
    // The vocabulary of shards is that of the model.
    run(&["--data", "lines/tokens", "--out-dir", "again"]);
    let tokenizer = |folder: &str| fs::read(scene.path(folder).join("tokenizer.bin")).unwrap();
    assert!(tokenizer("again") == tokenizer("lines/tokens"));
    scene.succeeds(&["--config", "lines/settings.toml", "--init-from", "resume", "--max-iters", "3"]);
}

/// Shards of llama2.c train a model: data00.bin is the validation split.
#[test]
fn shards_of_llama2c_train() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "1"]);
    fs::create_dir_all(scene.path("data/tok320")).unwrap();
    for (from, to) in [("shard00000", "tok320/data00"), ("shard00001", "tok320/data01"), ("tokenizer", "tok320")] {
        let (from, to) = (format!("out/tokens/{from}.bin"), format!("data/{to}.bin"));
        fs::copy(scene.path(&from), scene.path(&to)).unwrap();
    }
    let tiny = ["--config", "tiny.toml", "--max-iters", "1", "--data", "data/tok320"];
    let log = scene.succeeds(&[&tiny[..], &["--out-dir", "theirs"]].concat());
    assert!(log.contains("data: the token shards in data/tok320"), "{log}");
    let weights = |out_dir: &str| fs::read(scene.path(out_dir).join("model.bin")).unwrap();
    assert!(weights("theirs") == weights("out"));
    let eval = |data: &str| scene.succeeds(&["eval", "out", "--data", data]);
    assert_eq!(eval("data/tok320"), eval("out/tokens"));

    // The vocabulary beside the shards gave their ids. Another one of the same size cannot replace
    // it.
    let other = fs::read_to_string(scene.path("stories.txt")).unwrap().replace(['e', 'a'], "o").replace('t', "u");
    fs::write(scene.path("other.txt"), other).unwrap();
    scene.succeeds(&["--config", "tiny.toml", "--max-iters", "1", "--data", "other.txt", "--out-dir", "other"]);
    let given = [&tiny[..], &["--out-dir", "given", "--tokenizer", "other/tokenizer.bin"]].concat();
    let error = scene.fails(&given);
    assert!(error.contains("another vocabulary") && error.contains("leave out --tokenizer"), "{error}");
    let error = scene.fails(&["eval", "other/model.bin", "--data", "data/tok320"]);
    assert!(error.contains("have different vocabularies"), "{error}");
}

/// A text that was edited at equal length has other tokens.
#[test]
fn an_edited_text_is_tokenised_anew() {
    let scene = Scene::new();
    scene.train("base", &["--max-iters", "0"]);
    let options = ["--max-iters", "0", "--tokenizer", "base/tokenizer.bin"];
    scene.train("out", &options);
    let before = fs::read(scene.path("out/tokens/shard00001.bin")).unwrap();
    let edited = fs::read_to_string(scene.path("stories.txt")).unwrap().replace("cat", "owl");
    fs::write(scene.path("stories.txt"), edited).unwrap();
    scene.train("out", &options);
    assert!(fs::read(scene.path("out/tokens/shard00001.bin")).unwrap() != before);
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let scene = Scene::new();
    scene.succeeds(&["man", "man1"]);
    for name in ["download", "train-vocab", "pretokenize", "sample", "eval", "export", "completions", "man"] {
        assert!(scene.path(&format!("man1/trainer-{name}.1")).exists(), "{name}");
        for shell in ["bash", "zsh", "fish"] {
            assert!(scene.succeeds(&["completions", shell]).contains(name), "{shell}: {name}");
        }
    }
}

/// Behind `| head`, a training goes on, and a command that prints a result ends.
#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let scene = Scene::new();
    let unread = |arguments: &[&str]| {
        let mut child = scene.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        drop(child.stderr.take());
        child.wait().unwrap().code()
    };
    assert_eq!(unread(&[&train("out")[..], &["--max-iters", "5"]].concat()), Some(0));
    assert!(scene.path("out/model.bin").exists());
    assert_eq!(unread(&["eval", "out"]), Some(0));
    assert_eq!(unread(&["sample", "out", "--stories", "1000000"]), Some(0));
    assert_eq!(unread(&["export", "out", "model.bin"]), Some(0));
    assert_eq!(unread(&["sample", "nowhere"]), Some(1));
    assert_eq!(unread(&["--help"]), Some(0));
}
