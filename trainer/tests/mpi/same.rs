//! Several ranks train what one process trains.

use crate::scene::Scene;

/// The largest difference between two curves of the same length.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len() && !a.is_empty(), "{} and {} numbers", a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The sum of two gradients has one order, so that nothing may differ: neither data nor dropout,
/// neither weights nor the printed losses.
#[test]
fn two_ranks_are_two_passes_of_one_process_bit_for_bit() {
    let Some(scene) = Scene::new() else { return };
    scene.stories(0, "passes", "--gradient-accumulation-steps 2");
    let log = scene.stories(2, "ranks", "");
    assert!(log.contains("2 processes, each with 1 thread, share") && log.contains("64 tokens per step"), "{log}");
    assert_eq!(log.matches("iter      1 | loss").count(), 1, "rank 0 alone prints: {log}");
    assert!(scene.tensors("passes", 20) == scene.tensors("ranks", 20));
    for key in ["loss", "train_loss", "val_loss", "val_nats_per_byte", "tokens"] {
        assert_eq!(scene.metrics("passes", key), scene.metrics("ranks", key), "{key}");
    }
    // A trainer with the feature needs no mpirun, and one rank of mpirun is one process.
    scene.stories(1, "alone", "--gradient-accumulation-steps 2");
    assert!(scene.tensors("passes", 20) == scene.tensors("alone", 20));
}

/// Every token counts the same, however many of them count in the passes of a rank.
#[test]
fn chats_of_two_ranks_are_those_of_one_process() {
    let Some(scene) = Scene::new() else { return };
    let chats = |ranks, out_dir: &str, more: &str| {
        scene.train(ranks, &format!("--chats chats.jsonl --max-seq-len 64 --out-dir {out_dir} {more}"));
    };
    chats(0, "passes", "--gradient-accumulation-steps 2");
    chats(2, "ranks", "");
    assert!(scene.tensors("passes", 20) == scene.tensors("ranks", 20));
    for key in ["loss", "train_loss", "val_loss"] {
        assert_eq!(scene.metrics("passes", key), scene.metrics("ranks", key), "{key}");
    }
}

#[test]
fn ranks_are_a_larger_batch() {
    let Some(scene) = Scene::new() else { return };
    let batch = |ranks, out_dir: &str, more: &str| {
        scene.stories(ranks, out_dir, &format!("--dropout 0 --max-iters 50 --learning-rate 1e-2 {more}"));
        let losses = scene.metrics(out_dir, "loss");
        assert!(losses.len() == 50 && losses[49] < 0.8 * losses[0], "{losses:?}");
        losses
    };
    let (whole, two) = (batch(0, "whole", "--batch-size 4"), batch(2, "two", "--batch-size 2"));
    assert!(difference(&whole, &two) < 1e-5, "{whole:?} {two:?}");
    let four = batch(4, "four", "--batch-size 1");
    assert!(difference(&whole, &four) < 1e-5, "{whole:?} {four:?}");
    // Passes and ranks together: the ranks share each pass.
    let (passes, both) =
        (batch(0, "passes", "--gradient-accumulation-steps 4"), batch(2, "both", "--gradient-accumulation-steps 2"));
    assert!(difference(&passes, &both) < 1e-5, "{passes:?} {both:?}");
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let Some(scene) = Scene::new() else { return };
    let run = |ranks, out_dir: &str, more: &str| {
        let arguments = format!("--data stories.txt --out-dir {out_dir} --decay-lr=false --dropout 0 {more}");
        let output = scene.command(ranks, &arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stderr
    };
    run(2, "whole", "");
    run(2, "parts", "--max-iters 7");
    let resume = "--init-from resume --max-iters";
    let notes = run(0, "parts", &format!("{resume} 13 --gradient-accumulation-steps 2"));
    assert!(!notes.contains("settings have changed"), "{notes}");
    run(2, "parts", &format!("{resume} 20"));
    assert!(scene.tensors("whole", 20) == scene.tensors("parts", 20));

    // One process with twice the batch takes the same sequences.
    run(2, "larger", "--max-iters 7");
    let notes = run(0, "larger", &format!("{resume} 13 --batch-size 4"));
    assert!(!notes.contains("settings have changed"), "{notes}");
    run(2, "larger", &format!("{resume} 20"));
    assert!(difference(&scene.metrics("whole", "loss"), &scene.metrics("larger", "loss")) < 1e-5);

    let notes = run(0, "larger", &format!("{resume} 21"));
    assert!(notes.contains("gradient_accumulation_steps x processes: 2, now 1"), "{notes}");
}
