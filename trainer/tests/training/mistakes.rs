//! Mistakes are refused before the first step, with advice.

use std::fs;

use crate::{Scene, train};

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
        #[cfg(not(feature = "cuda"))]
        (&["--out-dir", "new", "--device", "cuda:1"], "device is cuda:1: this program was built without the feature"),
    ] {
        let error = scene.fails(arguments);
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}

/// Ids have a meaning only with the vocabulary that gave them: weights, teacher, shards and
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
    // A wrong tokenizer of the same size cannot be recognised before the first evaluation.
    fs::copy(scene.path("other/tokenizer.bin"), scene.path("alone/tokenizer.bin")).unwrap();
    for more in ["", " --eval-only"] {
        let log = runs(&format!("--init-from alone/model.bin --data stories.txt{more}"));
        assert!(log.contains("warning: the first validation loss is"), "{log}");
    }
    // A damaged tokenizer beside the model does not matter if another one is given.
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
    // The model's own tokenizer is no obstacle, nor are leftovers of a killed process.
    fs::copy(scene.path("out/tokenizer.bin"), scene.path("models/tokenizer.bin")).unwrap();
    fs::write(scene.path("models/.unfinished-abc"), "half").unwrap();
    scene.succeeds(&["export", "out", "models/new.bin"]);
    assert!(!scene.path("models/.unfinished-abc").exists());
    scene.train("out", &["--init-from", "resume", "--max-iters", "6", "--always-save-checkpoint"]);

    let step = "out/checkpoints/step-00000005/";
    let error = scene.fails(&["export", step, &format!("{step}tensors.safetensors")]);
    assert!(error.contains("tensors.safetensors is read here"), "{error}");
    // A tokenizer that is not whole is not exported.
    scene.without_checksums(step);
    let path = scene.path(step).join("tokenizer.bin");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = scene.fails(&["export", step, "cut/model.bin"]);
    assert!(error.contains("tokenizer ends"), "{error}");
    assert!(!scene.path("cut/model.bin").exists());
}
