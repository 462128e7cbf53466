//! Runs the program as its users do, on a tiny model.

mod chats;
mod damage;
mod mistakes;
mod resume;
mod run;

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

    /// Runs to the end and returns standard output.
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

    /// Runs to the end and returns standard error.
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

    /// Rewrites run.postcard of a checkpoint in the format before the checksums.
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

/// Starts a training and waits for its third line of metrics.
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
