use infer_core::Config;

use super::run::UNCHECKED;
use super::*;
use crate::io::loss_scale::LossScale;

const CONFIG: Config = Config::new(64, 192, 4, 4, 512, 256);

fn checkpoint(iter: u64, best_loss: f64) -> (Run, Vec<Tensor>) {
    let run = Run { iter, best_loss, ..Run::new(&CONFIG, Order { seed: 3, ..Order::default() }) };
    let data = vec![iter as f32, -0.0, f32::MIN_POSITIVE / 2.0, 1e30, 0.1, 7.0];
    (run, vec![Tensor { name: "weight.0.wq".into(), shape: vec![2, 3], data }])
}

fn save(checkpoints: &mut Checkpoints, iter: u64, best_loss: f64) {
    let (run, tensors) = checkpoint(iter, best_loss);
    checkpoints.save(&run, &tensors, b"tokens").unwrap();
}

fn open(out_dir: &Path, keep_all: bool) -> Checkpoints {
    let mut checkpoints = Checkpoints::open(out_dir).unwrap();
    let last = checkpoints.steps.last().map_or(0, |step| step.iter);
    checkpoints.begin(last, keep_all).unwrap();
    checkpoints
}

fn names(out_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out_dir.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn step(out_dir: &Path, iter: u64) -> PathBuf {
    out_dir.join("checkpoints").join(step_name(iter))
}

/// Number of the step that `read_last` reads.
fn last(out_dir: &Path) -> u64 {
    Checkpoints::open(out_dir).unwrap().read_last().unwrap().unwrap().run.iter
}

fn best(out_dir: &Path) -> u64 {
    Checkpoints::open(out_dir).unwrap().read_best().unwrap().unwrap().run.iter
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
}

/// Rewrites run.postcard as trainers before the checksums wrote it.
fn without_checksums(path: &Path) {
    let mut bytes = std::fs::read(path.join(RUN)).unwrap();
    bytes.truncate(bytes.len() - 12);
    bytes[0] = UNCHECKED as u8;
    std::fs::write(path.join(RUN), bytes).unwrap();
}

#[test]
fn what_was_saved_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    assert!(checkpoints.last().is_none());
    save(&mut checkpoints, 10, 1.5);
    let mut read = Checkpoints::open(folder.path()).unwrap().read_last().unwrap().unwrap();
    let (run, tensors) = checkpoint(10, 1.5);
    assert_eq!((&read.run, &read.tokenizer[..]), (&run, &b"tokens"[..]));
    assert!(read.take("weight.0.wq", &[3, 2]).is_err_and(|e| e.to_string().contains("[2, 3]")));
    assert_eq!(run.config(), CONFIG);
    let mut read = Checkpoint::read(&read.path).unwrap();
    let data = read.take("weight.0.wq", &[2, 3]).unwrap();
    assert_eq!(
        data.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        tensors[0].data.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
    assert!(read.take("weight.0.wk", &[2, 3]).is_err_and(|e| e.to_string().contains("weight.0.wk")));
}

#[test]
fn a_step_saved_before_its_evaluation_learns_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    save(&mut checkpoints, 10, f64::INFINITY); // Ctrl-C saves a step before its evaluation
    let (run, tensors) = checkpoint(10, 1.25);
    let run = Run { evaluated: Some(10), ..run };
    checkpoints.save(&run, &tensors, b"tokens").unwrap();
    let read = Checkpoints::open(folder.path()).unwrap().read_best().unwrap().unwrap();
    assert_eq!(read.run, run);
}

#[test]
fn only_best_and_last_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    save(&mut checkpoints, 10, 1.5);
    save(&mut checkpoints, 20, 1.5);
    save(&mut checkpoints, 30, 1.5);
    assert_eq!(names(folder.path()), ["step-00000010", "step-00000030"]);
    assert_eq!((best(folder.path()), last(folder.path())), (10, 30));
    save(&mut checkpoints, 40, 1.25);
    assert_eq!(names(folder.path()), ["step-00000040"]);

    let mut checkpoints = open(folder.path(), true);
    save(&mut checkpoints, 50, 1.25);
    save(&mut checkpoints, 60, 1.25);
    assert_eq!(names(folder.path()), ["step-00000040", "step-00000050", "step-00000060"]);
}

#[test]
fn before_the_first_evaluation_the_last_is_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), true);
    save(&mut checkpoints, 3, f64::INFINITY);
    save(&mut checkpoints, 7, f64::INFINITY);
    assert_eq!(best(folder.path()), 7);
}

#[test]
fn what_a_killed_process_leaves_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    save(&mut open(folder.path(), false), 10, 1.5);
    // One process was killed while it wrote a checkpoint, one before it removed an old step.
    std::fs::create_dir(folder.path().join("checkpoints/.unfinished-abc")).unwrap();
    save(&mut open(folder.path(), true), 20, 1.5);
    save(&mut open(folder.path(), true), 30, 1.5);
    let mut checkpoints = open(folder.path(), false);
    assert_eq!(names(folder.path()), ["step-00000010", "step-00000030"]);
    save(&mut checkpoints, 40, 1.5);
    assert_eq!(last(folder.path()), 40);
}

#[test]
fn files_that_are_cut_are_named() {
    let folder = tempfile::tempdir().unwrap();
    save(&mut open(folder.path(), false), 10, 1.5);
    let path = step(folder.path(), 10);
    for unchecked in [false, true] {
        if unchecked {
            without_checksums(&path);
        }
        for name in [TENSORS, RUN] {
            let whole = std::fs::read(path.join(name)).unwrap();
            for n in 0..whole.len() {
                std::fs::write(path.join(name), &whole[..n]).unwrap();
                let error = Checkpoint::read(&path).err().map(|e| format!("{e:#}")).unwrap_or_default();
                assert!(error.contains(name), "{n} bytes: {error:?}");
            }
            std::fs::write(path.join(name), whole).unwrap();
        }
        assert!(Checkpoint::read(&path).is_ok());
    }
}

#[test]
fn no_flipped_bit_goes_unseen() {
    let folder = tempfile::tempdir().unwrap();
    save(&mut open(folder.path(), false), 10, 1.5);
    let path = step(folder.path(), 10);
    for name in [TENSORS, RUN, TOKENIZER] {
        let file = path.join(name);
        for at in 0..file.metadata().unwrap().len() as usize {
            for bit in 0..8 {
                flip(&file, at, bit);
                let error = Checkpoint::read(&path).err().map(|e| format!("{e:#}")).unwrap_or_default();
                assert!(error.contains(&*file.to_string_lossy()), "bit {bit} of byte {at} of {name}: {error:?}");
                flip(&file, at, bit);
            }
        }
    }
    assert!(Checkpoint::read(&path).is_ok());
}

/// A damaged step is renamed, not removed, and the step is made again under its own name.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    for name in [TENSORS, RUN, TOKENIZER] {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = open(folder.path(), false);
        save(&mut checkpoints, 10, 1.5);
        save(&mut checkpoints, 20, 1.5);
        flip(&step(folder.path(), 20).join(name), 0, 3);
        assert_eq!((best(folder.path()), last(folder.path())), (10, 10));

        for _ in 0..2 {
            let mut checkpoints = Checkpoints::open(folder.path()).unwrap();
            checkpoints.begin(10, false).unwrap();
            save(&mut checkpoints, 20, 1.5);
            assert_eq!(last(folder.path()), 20);
            flip(&step(folder.path(), 20).join(name), 0, 3);
        }
        let mut checkpoints = Checkpoints::open(folder.path()).unwrap();
        checkpoints.begin(10, false).unwrap();
        let damaged = ["damaged-step-00000020", "damaged-step-00000020-2", "damaged-step-00000020-3"];
        assert_eq!(names(folder.path()), [&damaged[..], &["step-00000010"]].concat(), "{name}");

        flip(&step(folder.path(), 10).join(name), 0, 3);
        let error = format!("{:#}", Checkpoints::open(folder.path()).unwrap().read_last().err().unwrap());
        assert!(error.contains("no checkpoint in") && error.contains(name), "{error}");
    }
}

#[test]
fn a_damaged_best_one_is_passed_over_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    save(&mut checkpoints, 10, 1.5);
    save(&mut checkpoints, 20, 1.5);
    flip(&step(folder.path(), 10).join(RUN), 5, 0);
    assert_eq!((best(folder.path()), last(folder.path())), (20, 20));
    save(&mut open(folder.path(), false), 30, 1.5);
    assert_eq!(names(folder.path()), ["step-00000010", "step-00000020", "step-00000030"]);
}

#[test]
fn checkpoints_without_checksums_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    save(&mut checkpoints, 10, 1.5);
    without_checksums(&step(folder.path(), 10));
    std::fs::write(folder.path().join("checkpoints/index.json"), "{\"last\":\"step-00000010\",\"best\":null}").unwrap();
    assert_eq!(last(folder.path()), 10);
    let mut checkpoints = open(folder.path(), false);
    save(&mut checkpoints, 10, 1.25); // saving the evaluation adds the checksums
    flip(&step(folder.path(), 10).join(TENSORS), 100, 0);
    assert!(Checkpoints::open(folder.path()).unwrap().read_last().is_err());
}

#[test]
fn the_loss_scale_of_float16_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), true);
    let (run, tensors) = checkpoint(10, 1.5);
    let run = |skipped| Run { loss_scale: Some(LossScale { scale: 512.0, steps: 7, skipped }), ..run.clone() };
    checkpoints.save(&run(4), &tensors, b"tokens").unwrap();
    let read = Checkpoint::read(&step(folder.path(), 10)).unwrap().run;
    assert_eq!((read.clone(), read.updates()), (run(4), 6));
    checkpoints.save(&Run { iter: 11, ..run(12) }, &tensors, b"tokens").unwrap();
    let error = Checkpoint::read(&step(folder.path(), 11)).err().map(|e| format!("{e:#}"));
    assert!(error.is_some_and(|e| e.contains("12 of 11 steps")));
}
