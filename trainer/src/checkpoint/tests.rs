use super::*;
use crate::settings::tests::parse;

fn checkpoint(iter: u64) -> (Run, Vec<Tensor>) {
    let config = parse(&[], None).unwrap().config();
    let run = Run { iter, best_loss: 1.5, ..Run::new(&config, Order { seed: 3, ..Order::default() }) };
    let data = vec![iter as f32, -0.0, f32::MIN_POSITIVE / 2.0, 1e30, 0.1, 7.0];
    (run, vec![Tensor { name: "weight.0.wq".into(), shape: vec![2, 3], data }])
}

fn save(checkpoints: &mut Checkpoints, iter: u64, is_best: bool) {
    let (run, tensors) = checkpoint(iter);
    checkpoints.save(&run, &tensors, b"tokens", is_best).unwrap();
}

fn open(out_dir: &Path, keep_all: bool) -> Checkpoints {
    let mut checkpoints = Checkpoints::open(out_dir).unwrap();
    checkpoints.begin(keep_all).unwrap();
    checkpoints
}

fn names(out_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out_dir.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_saved_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    assert!(checkpoints.last().is_none());
    save(&mut checkpoints, 10, true);
    let mut read = Checkpoint::read(&Checkpoints::open(folder.path()).unwrap().last().unwrap()).unwrap();
    let (run, tensors) = checkpoint(10);
    assert_eq!((&read.run, &read.tokenizer[..]), (&run, &b"tokens"[..]));
    assert!(read.take("weight.0.wq", &[3, 2]).is_err_and(|e| e.to_string().contains("[2, 3]")));
    let (run, _) = checkpoint(10);
    assert_eq!(run.config(), parse(&[], None).unwrap().config());
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
    save(&mut checkpoints, 10, false); // as by Ctrl-C
    let (run, tensors) = checkpoint(10);
    let run = Run { evaluated: Some(10), best_loss: 1.25, ..run };
    checkpoints.save(&run, &tensors, b"tokens", true).unwrap();
    let read = Checkpoint::read(&Checkpoints::open(folder.path()).unwrap().best().unwrap()).unwrap();
    assert_eq!(read.run, run);
}

#[test]
fn only_best_and_last_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    save(&mut checkpoints, 10, true);
    save(&mut checkpoints, 20, false);
    save(&mut checkpoints, 30, false);
    assert_eq!(names(folder.path()), ["index.json", "step-00000010", "step-00000030"]);
    save(&mut checkpoints, 40, true);
    assert_eq!(names(folder.path()), ["index.json", "step-00000040"]);

    let mut checkpoints = open(folder.path(), true);
    save(&mut checkpoints, 50, false);
    save(&mut checkpoints, 60, false);
    assert_eq!(names(folder.path()), ["index.json", "step-00000040", "step-00000050", "step-00000060"]);
}

#[test]
fn what_a_killed_process_leaves_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    save(&mut open(folder.path(), false), 10, true);
    // Killed while writing, and between the renaming of a folder and that of the index.
    for name in [".unfinished-abc", "step-00000020"] {
        std::fs::create_dir(folder.path().join("checkpoints").join(name)).unwrap();
    }
    let mut checkpoints = open(folder.path(), false);
    assert_eq!(names(folder.path()), ["index.json", "step-00000010"]);
    save(&mut checkpoints, 20, false);
    assert!(Checkpoint::read(&checkpoints.last().unwrap()).is_ok_and(|checkpoint| checkpoint.run.iter == 20));
}

#[test]
fn damaged_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoints = open(folder.path(), false);
    save(&mut checkpoints, 10, true);
    let path = checkpoints.last().unwrap();
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
