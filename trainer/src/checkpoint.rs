//! Checkpoints: a folder per step with everything that a run needs to go on bit for bit.
//!
//! ```text
//! out_dir/checkpoints/index.json            which step is the last, and which the best
//! out_dir/checkpoints/step-00000100/        tensors.safetensors (weights and moments), run.postcard, tokenizer.bin
//! ```
//!
//! A folder is written under a temporary name, brought to the disk and renamed; then index.json is replaced, in one step
//! for both entries. A process that is killed at any instant leaves the old checkpoints or the new one.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use infer_core::format::TensorName;
use infer_core::{Config, WeightType};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::files::{UNFINISHED, remove, remove_unfinished, sync_folder, write_whole};

const TENSORS: &str = "tensors.safetensors";
const RUN: &str = "run.postcard";
const INDEX: &str = "index.json";
/// Of [`Run`]; another one is refused.
const FORMAT: u32 = 2;

/// State of a run besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    format: u32,
    /// dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
    shape: [usize; 7],
    shared_classifier: bool,
    /// Steps done.
    pub iter: u64,
    /// Sequences seen: the next one has this number in the order of the data.
    pub sequences: u64,
    /// Time spent in steps, in seconds, over all sessions.
    pub seconds: f64,
    /// Lowest validation loss so far, in nats per token.
    pub best_loss: f64,
    /// Step of the last evaluation. A run that was interrupted has one to catch up with.
    pub evaluated: Option<u64>,
    /// What the order of the data depends on.
    pub order: Order,
}

/// What the order of the data depends on: if a run resumes with another one, it is not the run that it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub seed: u64,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Sequences of an epoch.
    pub epoch: u64,
}

impl Run {
    /// A run that has not begun.
    pub fn new(config: &Config, order: Order) -> Run {
        let Config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, .. } = *config;
        Run {
            format: FORMAT,
            shape: [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len],
            shared_classifier: config.shared_classifier,
            iter: 0,
            sequences: 0,
            seconds: 0.0,
            best_loss: f64::INFINITY,
            evaluated: None,
            order,
        }
    }

    /// Shape of the model.
    pub fn config(&self) -> Config {
        let [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len] = self.shape;
        let shared_classifier = self.shared_classifier;
        let weights = WeightType::F32;
        Config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, shared_classifier, weights }
    }
}

/// A tensor on the host, by name.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// A checkpoint in memory.
pub struct Checkpoint {
    pub path: PathBuf,
    pub run: Run,
    pub tensors: Vec<Tensor>,
    /// Contents of tokenizer.bin.
    pub tokenizer: Vec<u8>,
}

impl Checkpoint {
    /// Reads a folder that [`Checkpoints::save`] has written.
    pub fn read(path: &Path) -> anyhow::Result<Checkpoint> {
        let file = |name: &str| {
            let path = path.join(name);
            std::fs::read(&path).with_context(|| format!("checkpoint file {}", path.display()))
        };
        let run: Run = postcard::from_bytes(&file(RUN)?).with_context(|| damaged(&path.join(RUN)))?;
        ensure!(run.format == FORMAT, "{} has format {}, this trainer reads {FORMAT}", path.display(), run.format);
        let tensors_path = path.join(TENSORS);
        let bytes = file(TENSORS)?;
        let tensors = SafeTensors::deserialize(&bytes).with_context(|| damaged(&tensors_path))?;
        let tensors = tensors.iter().map(|(name, view)| {
            ensure!(view.dtype() == Dtype::F32, "{}: {name} is {:?}, not F32", tensors_path.display(), view.dtype());
            let data = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Ok(Tensor { name: name.to_owned(), shape: view.shape().to_vec(), data })
        });
        let tensors = tensors.collect::<anyhow::Result<_>>()?;
        Ok(Checkpoint { path: path.to_path_buf(), run, tensors, tokenizer: file("tokenizer.bin")? })
    }

    /// Whether a folder holds a checkpoint.
    pub fn is_at(path: &Path) -> bool {
        path.join(RUN).is_file()
    }

    /// Takes the data of a tensor.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> anyhow::Result<Vec<f32>> {
        let path = self.path.join(TENSORS);
        let Some(i) = self.tensors.iter().position(|tensor| tensor.name == name) else {
            bail!("{} has no tensor {name}", path.display());
        };
        let tensor = self.tensors.swap_remove(i);
        ensure!(
            tensor.shape == shape,
            "{}: {name} has shape {:?}, the model needs {shape:?}",
            path.display(),
            tensor.shape
        );
        Ok(tensor.data)
    }
}

/// Name of a tensor in a checkpoint; `kind` is weight, moment1 or moment2.
pub fn tensor_name(kind: &str, name: TensorName, layer: usize) -> String {
    format!("{kind}.{layer}.{}", name.as_str())
}

fn damaged(path: &Path) -> String {
    format!("{} is damaged: resume from another checkpoint", path.display())
}

/// The checkpoints of a run.
pub struct Checkpoints {
    folder: PathBuf,
    index: Index,
    keep_all: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Index {
    last: Option<String>,
    best: Option<String>,
}

impl Checkpoints {
    /// Looks at the checkpoints in `out_dir`, without changing anything.
    pub fn open(out_dir: &Path) -> anyhow::Result<Checkpoints> {
        let folder = out_dir.join("checkpoints");
        let path = folder.join(INDEX);
        let index = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| damaged(&path))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Index::default(),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        Ok(Checkpoints { folder, index, keep_all: true })
    }

    /// Makes the folder ready for [`save`](Checkpoints::save): removes what a killed process left unfinished, and steps
    /// after the last, which are about to be computed again. `keep_all` keeps every step, else only best and last.
    pub fn begin(&mut self, keep_all: bool) -> anyhow::Result<()> {
        self.keep_all = keep_all;
        let attempt = || {
            std::fs::create_dir_all(&self.folder)?;
            remove_unfinished(&self.folder)?;
            for (name, path) in self.steps()? {
                if self.index.last.as_ref().is_none_or(|last| name > *last) {
                    remove(&path)?;
                }
            }
            self.remove_old()?;
            Ok(())
        };
        attempt().map_err(|e: std::io::Error| e).with_context(|| self.folder.display().to_string())
    }

    /// Folder of the last checkpoint.
    pub fn last(&self) -> Option<PathBuf> {
        self.index.last.as_ref().map(|name| self.folder.join(name))
    }

    /// Folder of the checkpoint with the lowest validation loss.
    pub fn best(&self) -> Option<PathBuf> {
        self.index.best.as_ref().map(|name| self.folder.join(name))
    }

    /// Writes a checkpoint as the last one, and as the best one if it `is_best`; then removes the ones before.
    pub fn save(&mut self, run: &Run, tensors: &[Tensor], tokenizer: &[u8], is_best: bool) -> anyhow::Result<()> {
        let name = format!("step-{:08}", run.iter);
        let path = self.folder.join(&name);
        if self.index.last.as_ref() != Some(&name) {
            let written = self.write(&path, run, tensors, tokenizer);
            let last =
                self.last().map_or("there is none before it".into(), |path| format!("{} is whole", path.display()));
            written.with_context(|| format!("writing checkpoint {} ({last})", path.display()))?;
        } else {
            // Saved when it was interrupted; the evaluation has come since.
            write_whole(&path.join(RUN), |out| Ok(out.write_all(&postcard::to_stdvec(run)?)?))?;
        }
        let best = if is_best { Some(name.clone()) } else { self.index.best.clone() };
        let index = Index { last: Some(name), best };
        write_whole(&self.folder.join(INDEX), |out| Ok(serde_json::to_writer(out, &index)?))?;
        self.index = index;
        self.remove_old().with_context(|| format!("removing old checkpoints from {}", self.folder.display()))
    }

    fn write(&self, path: &Path, run: &Run, tensors: &[Tensor], tokenizer: &[u8]) -> anyhow::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // as any new folder, not only for its owner
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = builder.tempdir_in(&self.folder)?;
        let views = tensors.iter().map(|tensor| {
            let bytes = bytemuck::cast_slice(&tensor.data);
            Ok((tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?))
        });
        let views = views.collect::<anyhow::Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, &temporary.path().join(TENSORS))?;
        std::fs::write(temporary.path().join(RUN), postcard::to_stdvec(run)?)?;
        std::fs::write(temporary.path().join("tokenizer.bin"), tokenizer)?;
        for name in [TENSORS, RUN, "tokenizer.bin"] {
            File::open(temporary.path().join(name))?.sync_all()?;
        }
        sync_folder(temporary.path())?;
        std::fs::rename(temporary.path(), path)?;
        let _ = temporary.keep(); // it has another name now
        Ok(sync_folder(&self.folder)?)
    }

    fn remove_old(&self) -> std::io::Result<()> {
        for (name, path) in self.steps()? {
            if !self.keep_all && Some(&name) != self.index.last.as_ref() && Some(&name) != self.index.best.as_ref() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Names and paths of the folders of all steps.
    fn steps(&self) -> std::io::Result<Vec<(String, PathBuf)>> {
        let mut steps = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("step-") {
                steps.push((name, entry.path()));
            }
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests;
