//! The program as its users run it, on a tiny model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Settings of a model that trains in a second or two.
const TINY: &str = "
    dim = 16\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nvocab_size = 320\nmax_seq_len = 32\nbatch_size = 4
    gradient_accumulation_steps = 2\ndropout = 0.1\nmax_iters = 50\neval_interval = 5\neval_iters = 1\nlog_interval = 10
    warmup_iters = 5\npeak_gflops = 100\n";

/// A folder with a few stories and the settings.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
        let heroes = ["cat", "dog", "bird", "fish", "frog", "bear", "duck", "fox"];
        let places = ["park", "forest", "house", "garden", "lake", "hill", "farm"];
        let things = ["ball", "book", "cake", "boat", "hat"];
        let mut text = String::new();
        for hero in heroes {
            for place in places {
                for thing in things {
                    text += &format!(
                        "The {hero} went to the {place}. It saw a {thing}. The {hero} was happy.\n<|endoftext|>\n"
                    );
                }
            }
        }
        fs::write(folder.path().join("stories.txt"), text).unwrap();
        Scene { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.args(arguments).current_dir(self.folder.path()).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs to the end and returns what was printed.
    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Fails with an error and returns it.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Trains into a folder.
    fn train(&self, out_dir: &str, more: &[&str]) -> String {
        self.succeeds(&[&train(out_dir)[..], more].concat())
    }

    /// Names in the folder of checkpoints.
    fn checkpoints(&self, out_dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(out_dir).join("checkpoints")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Weights and moments after step 50.
    fn tensors(&self, out_dir: &str) -> Vec<u8> {
        fs::read(self.path(out_dir).join("checkpoints/step-00000050/tensors.safetensors")).unwrap()
    }
}

fn train(out_dir: &str) -> [&str; 6] {
    ["--config", "tiny.toml", "--data", "stories.txt", "--out-dir", out_dir]
}

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
    assert_eq!(scene.checkpoints("out").len(), 11); // ten steps and the index
    let from_model = scene.succeeds(&["sample", "models/tiny.bin", "--prompt", "The cat", "--steps", "30"]);
    assert!(from_model.starts_with("The cat"), "{from_model}");
    assert_eq!(scene.succeeds(&["sample", "out", "--prompt", "The cat", "--steps", "30"]), from_model);

    // One loss by three ways: dfdx's during training, and infer-core's of the file and of the checkpoint.
    let eval = |model: &str| scene.succeeds(&["eval", model, "--data", "out/tokens"]);
    assert_eq!(eval("out"), eval("models/tiny.bin"));
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
fn fifty_steps_equal_twenty_five_a_kill_and_twenty_five() {
    let scene = Scene::new();
    scene.train("whole", &[]);
    let whole = scene.tensors("whole");

    scene.train("parts", &["--max-iters", "25", "--decay-lr=false"]);
    scene.train("other", &["--decay-lr=false"]);
    scene.train("parts", &["--init-from", "resume", "--decay-lr=false"]);
    assert_eq!(scene.tensors("parts"), scene.tensors("other"));
    assert_ne!(whole, scene.tensors("other"));

    // Killed again and again at any instant, while writing checkpoints among others, of which there is one at each step.
    let mut kills = 0;
    let arguments = [&train("killed")[..], &["--eval-interval", "1"]].concat();
    for i in 0.. {
        let resume = scene.path("killed/checkpoints/index.json").exists();
        let start = if resume { "resume" } else { "scratch" };
        let mut child = scene
            .command(&[&arguments[..], &["--init-from", start]].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(40 + 37 * i));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(i < 1000, "it never gets to the end");
    }
    assert!(kills > 0);
    assert_eq!(scene.tensors("killed"), whole, "after {kills} kills");
    let names = scene.checkpoints("killed");
    assert!(names.len() <= 3 && names.iter().all(|name| !name.starts_with('.')), "{names:?}");
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
fn a_resumed_run_needs_its_shards_only() {
    let scene = Scene::new();
    fs::write(scene.path("valid.txt"), "The hen went to the park.\n<|endoftext|>\n".repeat(20)).unwrap();
    scene.train("out", &["--max-iters", "5", "--valid", "valid.txt"]);
    fs::remove_file(scene.path("stories.txt")).unwrap();
    let log = scene.succeeds(&["--config", "out/settings.toml", "--init-from", "resume", "--max-iters", "10"]);
    assert!(log.contains("data: the token shards in out/tokens"), "{log}");
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

#[test]
fn mistakes_are_explained() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    for (arguments, parts) in [
        (&["--init-from", "resume", "--dim", "32"][..], &["dim 16", "dim 32", "settings.toml"][..]),
        (&["--max-iters", "6"], &["out holds a run already", "--init-from resume"]),
        (&["--init-from", "nothing.bin"], &["out holds a run already"]),
    ] {
        let error = scene.fails(&[&train("out")[..], arguments].concat());
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
    }
    for (arguments, part) in [
        (&["--out-dir", "new", "--init-from", "resume"][..], "no checkpoint in new"),
        (&["--out-dir", "new", "--init-from", "nothing.bin"], "nothing.bin"),
        (&["--out-dir", "new", "--data", "nowhere"], "nowhere"),
        (&["--out-dir", "new", "--data", "out/tokens", "--vocab-size", "400"], "vocabulary of 320"),
        (
            &["--out-dir", "new", "--data", "out/tokens", "--vocab-size", "320", "--max-seq-len", "100000"],
            "--max-seq-len",
        ),
        (
            &["--out-dir", "new", "--data", "out/tokens", "--vocab-size", "320", "--valid", "stories.txt"],
            "out/tokens are made and split already: leave out --valid",
        ),
        (
            &[
                "--out-dir",
                "new",
                "--data",
                "stories.txt",
                "--vocab-size",
                "400",
                "--tokenizer",
                "out/tokens/tokenizer.bin",
            ],
            "--vocab-size is 400, but the tokenizer out/tokens/tokenizer.bin has 320",
        ),
        (&["--device", "tpu"], "tpu"),
        (&["--config", "nowhere.toml"], "nowhere.toml"),
        (&["sample", "nowhere"], "nowhere"),
        (&["sample", "."], "neither a checkpoint"),
        (&["export", "nowhere", "model.bin"], "nowhere"),
    ] {
        let error = scene.fails(arguments);
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}

/// A text without separators is enough, in one file or in many, whatever an earlier try has left.
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
    // What fails first, at the vocabulary and when there are shards, does not stand in the way.
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

/// Shards as llama2.c makes them: data00.bin is the validation split.
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
}

/// Ids mean something with the vocabulary that gave them only: weights, teacher, shards and --tokenizer must agree.
#[test]
fn tokens_of_another_vocabulary_are_refused() {
    let scene = Scene::new();
    let other = fs::read_to_string(scene.path("stories.txt")).unwrap().replace(['e', 'a'], "o").replace('t', "u");
    fs::write(scene.path("other.txt"), other).unwrap();
    scene.train("base", &["--max-iters", "100", "--learning-rate", "1e-2", "--dropout", "0"]);
    let few = ["--config", "tiny.toml", "--max-iters", "1", "--eval-iters", "20"];
    scene.succeeds(&[&few[..], &["--data", "other.txt", "--out-dir", "other"]].concat());
    fs::create_dir(scene.path("alone")).unwrap();
    fs::copy(scene.path("base/model.bin"), scene.path("alone/model.bin")).unwrap();
    let new = |more: &str| {
        let out_dir = if more.contains("--out-dir") { "" } else { " --out-dir new" };
        format!("{} {more}{out_dir}", few.join(" "))
    };
    for (arguments, parts) in [
        (
            "--init-from alone/model.bin --data stories.txt",
            &["alone/model.bin has no tokenizer.bin", "--tokenizer"][..],
        ),
        ("--teacher alone/model.bin --data stories.txt", &["alone/model.bin has no tokenizer.bin", "--tokenizer"]),
        (
            "--init-from base/model.bin --data other/tokens",
            &["other/tokens", "another vocabulary", "base/tokenizer.bin"],
        ),
        ("--teacher base/model.bin --data other/tokens", &["other/tokens", "another vocabulary", "base/tokenizer.bin"]),
        ("--tokenizer base/tokenizer.bin --data other/tokens", &["other/tokens", "leave out --tokenizer"]),
        (
            "--init-from base/model.bin --teacher other/model.bin --data stories.txt",
            &["base/tokenizer.bin", "other/tokenizer.bin", "differ"],
        ),
        ("--init-from base/model.bin --tokenizer other/tokenizer.bin --data stories.txt", &["differ", "--tokenizer"]),
        ("--out-dir other --init-from resume --data base/tokens", &["base/tokens", "another vocabulary"]),
        ("--init-from base/model.bin --data stories.txt --vocab-size 400", &["--vocab-size is 400", "320"]),
    ] {
        let error = scene.fails(&new(arguments).split(' ').collect::<Vec<_>>());
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments}: {error}");
        assert!(!scene.path("new/tokens").exists(), "{arguments}");
    }
    let runs = |arguments: &str| {
        let _ = fs::remove_dir_all(scene.path("new"));
        scene.succeeds(&new(arguments).split(' ').collect::<Vec<_>>())
    };
    let told = "--init-from alone/model.bin --data stories.txt --tokenizer base/tokenizer.bin";
    assert!(!runs(told).contains("warning"));
    assert!(!runs("--teacher alone/model.bin --data base/tokens --tokenizer base/tokenizer.bin").contains("warning"));
    // A wrong one of the same size cannot be told by its looks.
    fs::copy(scene.path("other/tokenizer.bin"), scene.path("alone/tokenizer.bin")).unwrap();
    let log = runs("--init-from alone/model.bin --data stories.txt");
    assert!(log.contains("warning: the first validation loss is"), "{log}");
}

/// Weights that are no numbers stand for a training that diverged.
#[test]
fn numbers_that_are_none_stop_the_run() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    let path = scene.path("out/checkpoints/step-00000005/tensors.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = scene.fails(&[&train("out")[..], &["--init-from", "resume"]].concat());
    assert!(
        error.contains("NaN") && error.contains("last good checkpoint is out/checkpoints/step-00000005"),
        "{error}"
    );
}

/// A limit of the file size stands for a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "10", "--decay-lr=false"]);
    let before = scene.checkpoints("out");
    let resume = [&train("out")[..], &["--init-from", "resume", "--max-iters", "20", "--decay-lr=false"]].concat();
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 40; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_trainer")])
        .args(&resume)
        .current_dir(scene.folder.path())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{error}");
    assert!(error.contains("step-00000015 (out/checkpoints/step-00000010 is whole)"), "{error}");
    assert_eq!(scene.checkpoints("out"), before);
    scene.succeeds(&resume);
    assert!(scene.checkpoints("out").contains(&"step-00000020".to_owned()));
}

/// Ctrl-C saves the step that it interrupts.
#[cfg(unix)]
#[test]
fn an_interrupted_run_can_go_on() {
    let scene = Scene::new();
    let arguments = [&train("out")[..], &["--max-iters", "1000000", "--eval-interval", "1000000"]].concat();
    let child = scene.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let started = |path: &Path| fs::read_to_string(path).is_ok_and(|lines| lines.lines().count() > 2);
    while !started(&scene.path("out/metrics.jsonl")) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{log}");
    assert!(log.contains("which is saved"), "{log}");
    let saved = scene.checkpoints("out")[1].clone();
    let iter: u64 = saved["step-".len()..].parse().unwrap();
    scene.succeeds(&["--config", "out/settings.toml", "--init-from", "resume", "--max-iters", &(iter + 1).to_string()]);
}
