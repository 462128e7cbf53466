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
        self.fails_with(1, arguments)
    }

    /// Fails with an exit status and an error on one line, which it returns.
    fn fails_with(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.command(arguments).env("RUST_BACKTRACE", "1").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stderr}");
        let mut lines = stderr.lines().skip_while(|line| !line.starts_with("error: "));
        let error = lines.next().unwrap_or_default();
        assert!(!error.is_empty() && lines.next().is_none(), "{arguments:?}: {stderr}");
        error.to_string()
    }

    /// What a run says on standard error.
    fn notes(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        stderr
    }

    fn flip_bit(&self, name: &str) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(self.path(name), bytes).unwrap();
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

    /// Takes a checkpoint back to the format before there were checksums.
    fn without_checksums(&self, step: &str) {
        let path = self.path(step).join("run.postcard");
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 12);
        bytes[0] = 2;
        fs::write(path, bytes).unwrap();
    }

    /// Weights and moments after step 50.
    fn tensors(&self, out_dir: &str) -> Vec<u8> {
        fs::read(self.path(out_dir).join("checkpoints/step-00000050/tensors.safetensors")).unwrap()
    }
}

fn train(out_dir: &str) -> [&str; 6] {
    ["--config", "tiny.toml", "--data", "stories.txt", "--out-dir", out_dir]
}

/// Starts, and waits for some lines of metrics.
#[cfg(unix)]
fn start(scene: &Scene, arguments: &[&str]) -> std::process::Child {
    let child = scene.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let started = |path: &Path| fs::read_to_string(path).is_ok_and(|lines| lines.lines().count() > 2);
    while !started(&scene.path("out/metrics.jsonl")) {
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[cfg(unix)]
fn send(signal: &str, child: &std::process::Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
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

    // One loss by three ways: dfdx's during training, and infer-core's of the file and of the
    // checkpoint.
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
fn fifty_steps_equal_twenty_five_a_kill_and_twenty_five() {
    let scene = Scene::new();
    scene.train("whole", &[]);
    let whole = scene.tensors("whole");

    scene.train("parts", &["--max-iters", "25", "--decay-lr=false"]);
    scene.train("other", &["--decay-lr=false"]);
    scene.train("parts", &["--init-from", "resume", "--decay-lr=false"]);
    assert_eq!(scene.tensors("parts"), scene.tensors("other"));
    assert_ne!(whole, scene.tensors("other"));

    // Killed again and again at any instant, while writing checkpoints among others, of which there
    // is one at each step.
    let mut kills = 0;
    let arguments = [&train("killed")[..], &["--eval-interval", "1"]].concat();
    for i in 0.. {
        let resume = fs::read_dir(scene.path("killed/checkpoints"))
            .is_ok_and(|mut entries| entries.any(|entry| entry.unwrap().file_name().as_encoded_bytes()[0] == b's'));
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
    assert!(names.len() <= 2 && names.iter().all(|name| !name.starts_with('.')), "{names:?}");
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
fn a_resumed_run_keeps_its_shards() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    let shard = || fs::read(scene.path("out/tokens/shard00001.bin")).unwrap();
    let before = shard();
    // Without --data the run's own are taken, not those that a new run would find.
    let resume = ["--config", "tiny.toml", "--out-dir", "out", "--init-from", "resume", "--max-iters", "6"];
    let log = scene.succeeds(&resume);
    assert!(log.contains("data: the token shards in out/tokens"), "{log}");
    fs::write(scene.path("other.txt"), "The hen went to the park.\n<|endoftext|>\nThe end.\n".repeat(200)).unwrap();
    let error = scene.fails(&[&resume[..], &["--data", "other.txt"]].concat());
    assert!(error.contains("out/tokens has the shards of this run") && error.contains("leave out --data"), "{error}");
    fs::remove_file(scene.path("out/settings.toml")).unwrap();
    let error = scene.fails(&resume);
    assert!(error.contains("no settings.toml in out") && error.contains("--data"), "{error}");
    assert!(shard() == before && !scene.path("out/generated-1337.txt").exists());
    scene.succeeds(&[&resume[..], &["--data", "stories.txt"]].concat());
}

/// Most models of llama2.c share the classifier with the embedding; those that do not can be tuned
/// and resumed too.
#[test]
fn an_unshared_classifier_is_resumed() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "1"]);
    let mut bytes = fs::read(scene.path("out/model.bin")).unwrap();
    let embedding = bytes[28..28 + 320 * 16 * 4].to_vec();
    bytes[20..24].copy_from_slice(&(-320i32).to_le_bytes());
    bytes.extend(embedding);
    fs::create_dir(scene.path("unshared")).unwrap();
    fs::write(scene.path("unshared/model.bin"), bytes).unwrap();
    fs::copy(scene.path("out/tokenizer.bin"), scene.path("unshared/tokenizer.bin")).unwrap();
    scene.train("tuned", &["--init-from", "unshared/model.bin", "--max-iters", "1"]);
    scene.succeeds(&["--config", "tuned/settings.toml", "--init-from", "resume", "--max-iters", "2"]);
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

#[test]
fn mistakes_are_explained() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    for (arguments, parts) in [
        (&["--init-from", "resume", "--dim", "32"][..], &["dim 16", "dim 32", "settings.toml"][..]),
        (&["--max-iters", "6"], &["out holds a run already", "--config out/settings.toml --init-from resume"]),
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
        (&["--config", "nowhere.toml"], "nowhere.toml"),
        (&["--out-dir", "new", "--separator", "x"], "--separator is for stories of your own"),
        (&["--out-dir", "new", "--valid", "stories.txt"], "--valid is for stories of your own"),
        (&["sample", "nowhere"], "nowhere"),
        (&["eval", "out", "--data", "stories.txt"], "stories.txt is no folder of token shards"),
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

    // A given vocabulary of the same size cannot replace the one that lies with them and gave their
    // ids.
    let other = fs::read_to_string(scene.path("stories.txt")).unwrap().replace(['e', 'a'], "o").replace('t', "u");
    fs::write(scene.path("other.txt"), other).unwrap();
    scene.succeeds(&["--config", "tiny.toml", "--max-iters", "1", "--data", "other.txt", "--out-dir", "other"]);
    let given = [&tiny[..], &["--out-dir", "given", "--tokenizer", "other/tokenizer.bin"]].concat();
    let error = scene.fails(&given);
    assert!(error.contains("another vocabulary") && error.contains("leave out --tokenizer"), "{error}");
    let error = scene.fails(&["eval", "other/model.bin", "--data", "data/tok320"]);
    assert!(error.contains("have different vocabularies"), "{error}");
}

/// Ids mean something with the vocabulary that gave them only: weights, teacher, shards and
/// --tokenizer must agree.
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
    for more in ["", " --eval-only"] {
        let log = runs(&format!("--init-from alone/model.bin --data stories.txt{more}"));
        assert!(log.contains("warning: the first validation loss is"), "{log}");
    }
    // A damaged one beside the model does not stand in the way of one that is given.
    fs::write(scene.path("alone/tokenizer.bin"), "damaged").unwrap();
    assert!(!runs(told).contains("warning"));
}

#[test]
fn settings_are_checked_before_the_first_step() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    for (arguments, part) in [
        (&["--device", "tpu"][..], "tpu"),
        (&["--n-heads", "3"], "n_heads is 3: it must divide dim 64"),
        (&["--config", "tiny.toml", "--batch-size", "9223372036854775808"], "batch_size is 9223372036854775808"),
        (&["sample", "out", "--temperature=-1"], "temperature is -1"),
        (&["eval", "out", "--window", "33"], "--window 33"),
        (&["download", "stories260K", "--sha256", "00"], "--sha256"),
    ] {
        let error = scene.fails_with(2, arguments);
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
    for (arguments, parts) in [
        (&["--export", "models/"][..], &["models/ is a folder", "--export"][..]),
        (&["--export", "out"], &["out is a folder", "--export"]),
        (&["--export", "stories.txt/model.bin"], &["stories.txt/model.bin cannot be written", "--export"]),
        (&["--export", "new/tokenizer.bin"], &["tokenizer.bin", "--export"]),
        (&["--export", "stories.txt"], &["stories.txt is read here", "--export"]),
        (&["--export", "out/tokens/shard00000.bin"], &["shard00000.bin is no model file", "--export"]),
        (&["--export", "tiny.toml"], &["tiny.toml is no model file", "--export"]),
        (&["--export", "new/settings.toml"], &["settings.toml", "another file of this name"]),
        (&["--export", "new/metrics.jsonl"], &["metrics.jsonl", "another file of this name"]),
        (&["--init-from", "out/model.bin", "--export", "out/model.bin"], &["out/model.bin is read here", "--export"]),
        (&["--export-version", "2", "--hidden-dim", "42"], &["hidden_dim is 42", "multiples of 4"]),
        (&["--batch-size", "9223372036854775807"], &["GB of memory", "lower batch_size from 9223372036854775807"]),
        (&["--batch-size", "100000000"], &["GB of memory", "lower batch_size from 100000000"]),
        (&["--n-layers", "2000000000"], &["GB of memory", "n_layers"]),
    ] {
        let error = scene.fails(&[&train("new")[..], arguments].concat());
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
    }
    assert!(!scene.path("new/metrics.jsonl").exists(), "no step was done");
    let error = scene.fails(&train("stories.txt"));
    assert!(error.contains("folder stories.txt cannot be written: name another --out-dir"), "{error}");
}

#[test]
fn another_models_tokenizer_is_never_replaced() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    fs::create_dir(scene.path("models")).unwrap();
    fs::write(scene.path("models/tokenizer.bin"), "another").unwrap();
    for arguments in [
        [&train("new")[..], &["--export", "models/new.bin", "--max-iters", "1000000"]].concat(),
        vec!["export", "out", "models/new.bin"],
    ] {
        let error = scene.fails(&arguments);
        assert!(error.contains("models/tokenizer.bin is another vocabulary"), "{error}");
        assert!(!scene.path("models/new.bin").exists());
        assert_eq!(fs::read(scene.path("models/tokenizer.bin")).unwrap(), b"another");
    }
    // Its own is no obstacle, nor is what a killed process has left.
    fs::copy(scene.path("out/tokenizer.bin"), scene.path("models/tokenizer.bin")).unwrap();
    fs::write(scene.path("models/.unfinished-abc"), "half").unwrap();
    scene.succeeds(&["export", "out", "models/new.bin"]);
    assert!(!scene.path("models/.unfinished-abc").exists());
    scene.train("out", &["--init-from", "resume", "--max-iters", "6", "--always-save-checkpoint"]);

    let step = "out/checkpoints/step-00000005/";
    let error = scene.fails(&["export", step, &format!("{step}tensors.safetensors")]);
    assert!(error.contains("tensors.safetensors is read here"), "{error}");
    // A tokenizer that is not whole is not shipped.
    scene.without_checksums(step);
    let path = scene.path(step).join("tokenizer.bin");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = scene.fails(&["export", step, "cut/model.bin"]);
    assert!(error.contains("tokenizer ends"), "{error}");
    assert!(!scene.path("cut/model.bin").exists());
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

/// As behind `| head`: a training goes on, a result ends.
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

#[test]
fn a_folder_has_one_trainer() {
    let scene = Scene::new();
    fs::create_dir(scene.path("out")).unwrap();
    let first = fs::File::create(scene.path("out/.lock")).unwrap();
    first.lock().unwrap(); // as a trainer does
    let error = scene.fails(&train("out"));
    assert!(error.contains("out: another trainer is at work here") && error.contains("--out-dir"), "{error}");
    assert!(!scene.path("out/tokens").exists());
    drop(first);
    scene.train("out", &["--max-iters", "5"]);
}

#[test]
fn a_damaged_checkpoint_costs_the_steps_since_the_one_before() {
    let scene = Scene::new();
    let arguments = ["--always-save-checkpoint", "--max-iters", "15"];
    scene.train("whole", &arguments);
    scene.train("out", &arguments);
    for file in ["run.postcard", "tensors.safetensors", "tokenizer.bin"] {
        scene.flip_bit(&format!("out/checkpoints/step-00000015/{file}"));
        let error = scene.fails(&train("out"));
        assert!(error.contains("out holds a run already"), "{error}");
        let notes = scene.notes(&[&train("out")[..], &["--init-from", "resume"], &arguments].concat());
        let taken = "step-00000010 is whole, and taken in its place";
        assert!(notes.contains(file) && notes.contains(taken), "{notes}");
        let tensors = |out_dir| fs::read(scene.path(out_dir).join("checkpoints/step-00000015/tensors.safetensors"));
        assert_eq!(tensors("out").unwrap(), tensors("whole").unwrap(), "made again, bit for bit");
    }
    let damaged = ["damaged-step-00000015", "damaged-step-00000015-2", "damaged-step-00000015-3"];
    assert_eq!(scene.checkpoints("out")[..3], damaged);

    for step in [5, 10, 15] {
        scene.flip_bit(&format!("out/checkpoints/step-{step:08}/tensors.safetensors"));
    }
    let before = scene.checkpoints("out");
    for arguments in [&[&train("out")[..], &["--init-from", "resume"]].concat()[..], &["sample", "out"]] {
        let error = scene.fails(arguments);
        assert!(error.contains("no checkpoint in out/checkpoints is whole"), "{error}");
    }
    let error = scene.fails(&train("out"));
    assert!(error.contains("out holds a run already"), "{error}");
    assert_eq!(scene.checkpoints("out"), before);
}

#[test]
fn what_changed_between_two_parts_of_a_run_is_said() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    scene.without_checksums("out/checkpoints/step-00000005");
    fs::write(scene.path("out/checkpoints/index.json"), "{\"last\":\"step-00000005\",\"best\":null}").unwrap();
    let changed = ["--init-from", "resume", "--max-iters", "6", "--batch-size", "8", "--seed", "7"];
    let notes = scene.notes(&[&train("out")[..], &changed].concat());
    assert!(notes.contains("settings have changed: seed: 1337, now 7; batch_size: 4, now 8\n"), "{notes}");
    assert!(notes.contains("step-00000005 has no checksums"), "{notes}");
}

/// Weights that are no numbers stand for a training that diverged.
#[test]
fn a_nan_loss_stops_the_run() {
    let scene = Scene::new();
    scene.train("out", &["--max-iters", "5"]);
    scene.without_checksums("out/checkpoints/step-00000005");
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

/// Ctrl-C, `kill` and a closed terminal save the step that they interrupt.
#[cfg(unix)]
#[test]
fn an_interrupted_run_can_go_on() {
    for (signal, status) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        if signal == "-HUP" && !hangs_up() {
            continue;
        }
        let scene = Scene::new();
        let arguments = [&train("out")[..], &["--max-iters", "1000000", "--eval-interval", "1000000"]].concat();
        let child = start(&scene, &arguments);
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(status), "{log}");
        assert!(log.contains("which is saved"), "{log}");
        let saved = scene.checkpoints("out")[0].clone();
        let iter: u64 = saved["step-".len()..].parse().unwrap();
        let more = (iter + 1).to_string();
        scene.succeeds(&["--config", "out/settings.toml", "--init-from", "resume", "--max-iters", &more]);
    }
}

/// Whether a closed terminal would end a program that this one starts: not under nohup.
#[cfg(unix)]
fn hangs_up() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 0)
}

/// nohup starts a program so that a closed terminal does not end it.
#[cfg(target_os = "linux")]
#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let scene = Scene::new();
    let program = env!("CARGO_BIN_EXE_trainer");
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh", program])
        .args(train("out"))
        .current_dir(scene.folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !scene.path("out/metrics.jsonl").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    send("-HUP", &child);
    assert!(child.wait().unwrap().success());
}
