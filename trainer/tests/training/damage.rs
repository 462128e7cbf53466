//! Damaged checkpoints, a full disk, a diverging loss and a second trainer lose nothing.

use std::fs;
use std::process::Command;

use crate::{Scene, train};

#[test]
fn a_folder_has_one_trainer() {
    let scene = Scene::new();
    fs::create_dir(scene.path("out")).unwrap();
    let first = fs::File::create(scene.path("out/.lock")).unwrap();
    first.lock().unwrap(); // a trainer does the same
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

/// NaN weights stand for a training that diverged.
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
