//! A folder with stories and chats, and the program under mpirun.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Settings of a model that trains in a second or two.
const TINY: &str = "
    dim = 16\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nvocab_size = 320\nmax_seq_len = 16\nbatch_size = 2
    dropout = 0.1\nmax_iters = 20\neval_interval = 10\neval_iters = 3\nlog_interval = 1\nwarmup_iters = 5
    peak_gflops = 100\n";

/// A folder with the data and the settings.
pub struct Scene {
    folder: TempDir,
}

impl Scene {
    /// The folder, or `None`, with a printed line, where mpirun is not installed: a test then
    /// skips.
    pub fn new() -> Option<Scene> {
        if Command::new("mpirun").arg("--version").output().is_err() {
            tests::shared::skip("mpirun is not installed");
            return None;
        }
        let scene = Scene { folder: tempfile::tempdir().unwrap() };
        let (mut stories, mut chats) = (String::new(), String::new());
        for hero in ["cat", "dog", "bird", "fish", "frog", "bear"] {
            for place in ["park", "forest", "house", "garden", "lake"] {
                for (i, thing) in ["ball", "book", "cake", "boat", "hat"].into_iter().enumerate() {
                    stories += &format!("The {hero} went to the {place}. It saw a {thing}.\n<|endoftext|>\n");
                    // Answers of many lengths: batches differ in the number of tokens that count.
                    let answer = "yes ".repeat(1 + i * i);
                    chats += &format!("{{\"prompt\": \"{hero} {place}\", \"response\": \"{answer}{thing}\"}}\n");
                }
            }
        }
        for (name, text) in [("tiny.toml", TINY), ("stories.txt", &stories), ("chats.jsonl", &chats)] {
            fs::write(scene.path(name), text).unwrap();
        }
        Some(scene)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command line of a training, on so many ranks; 0 is without mpirun.
    pub fn command(&self, ranks: usize, arguments: &str) -> Command {
        let train = format!("--config tiny.toml {arguments}");
        let mut command = match ranks {
            0 => Command::new(env!("CARGO_BIN_EXE_trainer")),
            _ => mpirun(),
        };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_trainer")]);
        }
        command.args(train.split_whitespace()).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Trains to the end and returns standard output.
    pub fn train(&self, ranks: usize, arguments: &str) -> String {
        let output = self.command(ranks, arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{ranks} ranks, {arguments}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Trains on stories.
    pub fn stories(&self, ranks: usize, out_dir: &str, more: &str) -> String {
        self.train(ranks, &format!("--data stories.txt --out-dir {out_dir} {more}"))
    }

    /// Weights and moments of a checkpoint.
    pub fn tensors(&self, out_dir: &str, step: u64) -> Vec<u8> {
        fs::read(self.path(&format!("{out_dir}/checkpoints/step-{step:08}/tensors.safetensors"))).unwrap()
    }

    /// The numbers under `key` in metrics.jsonl.
    pub fn metrics(&self, out_dir: &str, key: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(&format!("{out_dir}/metrics.jsonl"))).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| line.get(key)?.as_f64()).collect()
    }
}

/// mpirun for tests: as root, and with more ranks than processors.
pub fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    command.envs([("RAYON_NUM_THREADS", "1"), ("RUST_BACKTRACE", "0")]);
    command
}

/// The lines of a failed run that the trainer wrote; mpirun adds its own.
pub fn errors(output: &Output) -> Vec<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    stderr.lines().filter(|line| line.starts_with("error: ")).map(String::from).collect()
}
