//! Runs go on where they were stopped.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Scene, train};
#[cfg(unix)]
use crate::{send, start};

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

    // This run is killed again and again at any instant. It writes a checkpoint at each step, so
    // that kills hit the writing too.
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
    // Without --data the run takes its own shards, not those that a new run would find.
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

/// Most models of llama2.c share the classifier with the embedding. Models that do not can be tuned
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

/// Whether a closed terminal would end a program that this one starts. Under nohup it would not.
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
