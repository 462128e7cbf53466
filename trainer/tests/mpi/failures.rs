//! Ranks that fail end the job with one message, and leave its checkpoints whole.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::scene::{Scene, errors, mpirun};

/// A training that would go on for ever.
const LONG: &str = "--data stories.txt --out-dir out --max-iters 1000000 --eval-interval 10";
/// The time within which a job ends that has lost a rank.
const SOON: Duration = Duration::from_secs(10);

/// A training of two ranks that has written its first checkpoint.
fn start(scene: &Scene) -> Child {
    let mut command = scene.command(2, LONG);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !scene.path("out/checkpoints").is_dir() || names(scene).is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn names(scene: &Scene) -> Vec<String> {
    let entries = fs::read_dir(scene.path("out/checkpoints")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("step-")).collect()
}

/// The process id of a rank.
fn rank(number: usize, mpirun: &Child) -> u32 {
    let children = Command::new("ps").args(["-o", "pid=", "--ppid", &mpirun.id().to_string()]).output().unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let is_rank = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|line| line == format!("OMPI_COMM_WORLD_RANK={number}").as_bytes())
    };
    children.split_whitespace().map(|pid| pid.parse().unwrap()).find(is_rank).unwrap()
}

fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Waits for the end, which comes soon. Returns the exit status, standard error, and the errors of
/// the trainer in it.
fn ends(mut child: Child) -> (Option<i32>, String, Vec<String>) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() && start.elapsed() < 2 * SOON {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill(); // has ended, unless the test fails
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned(), errors(&output))
}

/// Goes on for a step with one process.
fn goes_on(scene: &Scene) {
    let last = names(scene).iter().map(|name| name["step-".len()..].parse::<u64>().unwrap()).max().unwrap();
    let more = format!("--init-from resume --gradient-accumulation-steps 2 --max-iters {}", last + 1);
    scene.stories(0, "out", &more);
}

#[test]
fn a_killed_rank_ends_the_job() {
    let Some(scene) = Scene::new() else { return };
    let child = start(&scene);
    send("-KILL", rank(1, &child));
    let (status, stderr, errors) = ends(child);
    assert_ne!(status, Some(0));
    assert!(stderr.contains("process rank 1") && errors.is_empty(), "{stderr}"); // mpirun says it
    goes_on(&scene);
}

#[test]
fn a_stopped_rank_ends_the_job() {
    for silent in [0, 1] {
        let Some(scene) = Scene::new() else { return };
        let child = start(&scene);
        send("-STOP", rank(silent, &child));
        let (status, stderr, errors) = ends(child);
        assert_ne!(status, Some(0));
        assert!(errors.len() == 1 && errors[0].starts_with(&format!("error: rank {silent} on ")), "{stderr}");
        goes_on(&scene);
    }
}

/// A signal to any rank saves the step and stops them all. mpirun passes SIGUSR1 on.
#[test]
fn an_interrupted_job_can_go_on() {
    for (receiver, signal, status) in [(Some(1), "-TERM", 143), (Some(0), "-INT", 130), (None, "-USR1", 138)] {
        let Some(scene) = Scene::new() else { return };
        let child = start(&scene);
        send(signal, receiver.map_or(child.id(), |number| rank(number, &child)));
        let (code, stderr, errors) = ends(child);
        assert!(code == Some(status) && errors.is_empty(), "{code:?} {stderr}");
        let steps = names(&scene).iter().map(|name| name["step-".len()..].parse::<u64>().unwrap()).max().unwrap();
        let logged = scene.metrics("out", "loss").len() as u64;
        assert_eq!(steps, logged, "the last step is saved");
        goes_on(&scene);
    }
}

/// Only the files of rank 1 are bad: it says so, and all end.
#[test]
fn a_bad_file_of_one_rank_ends_the_job() {
    let Some(scene) = Scene::new() else { return };
    scene.stories(0, "made", "--max-iters 0");
    for folder in ["a", "b"] {
        fs::create_dir(scene.path(folder)).unwrap();
        let copied = Command::new("cp").arg("-r").args([scene.path("made/tokens"), scene.path(folder)]).status();
        assert!(copied.unwrap().success());
    }
    // Each rank in a folder of its own, as on machines that share none.
    let run = || {
        let mut command = mpirun();
        for folder in ["a", "b"] {
            command.args([":"].iter().take(usize::from(folder == "b"))).args(["-n", "1", "-wdir"]);
            command.arg(scene.path(folder)).arg(env!("CARGO_BIN_EXE_trainer"));
            command.arg("--config").arg(scene.path("tiny.toml"));
            command.args(["--data", "tokens", "--out-dir", "out", "--max-iters", "3"]);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let _ = fs::remove_dir_all(scene.path("a/out"));
        (output.status.success(), errors(&output))
    };
    assert_eq!(run(), (true, vec![]));
    assert!(!scene.path("b/out").exists(), "rank 1 writes nothing");

    let shard = scene.path("b/tokens/shard00001.bin");
    let whole = fs::read(&shard).unwrap();
    fs::remove_file(&shard).unwrap();
    for part in ["", "shard"] {
        let (success, errors) = run();
        assert!(!success && errors.len() == 1 && errors[0].starts_with("error: rank 1: "), "{errors:?}");
        assert!(errors[0].contains(part), "{errors:?}");
        fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    }
}

#[test]
fn what_is_wrong_on_all_ranks_is_said_once() {
    let Some(scene) = Scene::new() else { return };
    let fails = |arguments: &str| {
        let output = scene.command(2, arguments).output().unwrap();
        let errors = errors(&output);
        assert!(!output.status.success() && errors.len() == 1, "{errors:?}");
        (output.status.code(), errors[0].clone())
    };
    let (status, error) = fails("--data stories.txt --learning-rate 7");
    assert_eq!((status, &*error), (Some(2), "error: all ranks: learning_rate is 7: it must be from 0 to 1"));
    let (status, error) = fails("--data nowhere");
    assert!(status == Some(1) && error.starts_with("error: rank 0: ") && error.contains("nowhere"), "{error}");
}
