//! Checkpoints: a folder per step with everything that a run needs to go on bit for bit.
//!
//! ```text
//! out_dir/checkpoints/base.safetensors   the weights under adapters
//! out_dir/checkpoints/step-00000100/     one step:
//!     tensors.safetensors                weights, or adapters, and moments
//!     run.postcard                       state of the run, and checksums
//!     tokenizer.bin                      or a tokenizer.json under this name
//! out_dir/checkpoints/damaged-step-…/    a step that a resumed run passed over
//! ```
//!
//! A folder is written under a temporary name, synced to the disk and renamed: a process that is
//! killed at any instant leaves the new checkpoint whole or not at all. The last step is the one
//! with the highest number. The last step knows the lowest loss so far; the best step is the first
//! one that has it. The checksums show damage in any of the three files.

mod run;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use crc32c::crc32c;
use infer_core::format::TensorName;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use self::run::{Checksums, decode_run, encode_run};
pub use self::run::{Order, Run, TENSORS};
use crate::io::files::{TOKENIZER, UNFINISHED, map, remove, remove_unfinished, sync_folder, write_whole};
use crate::report::output::note;

/// The state of the run.
pub const RUN: &str = "run.postcard";
/// The weights under a run's adapters, which do not change: they are there once, beside the steps.
pub const BASE: &str = "base.safetensors";

/// A tensor on the host.
pub struct Tensor {
    /// Name in the file, as [`tensor_name`] makes it.
    pub name: String,
    /// Rows and columns.
    pub shape: Vec<usize>,
    /// Values, row by row.
    pub data: Vec<f32>,
}

fn read_run(path: &Path) -> anyhow::Result<(Run, Option<Checksums>)> {
    let path = path.join(RUN);
    let bytes = std::fs::read(&path).with_context(|| format!("checkpoint file {}", path.display()))?;
    decode_run(&bytes).with_context(|| damaged(&path))
}

/// A checkpoint in memory.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// State of the run.
    pub run: Run,
    /// Weights and moments.
    pub tensors: Vec<Tensor>,
    /// Contents of tokenizer.bin.
    pub tokenizer: Vec<u8>,
}

impl Checkpoint {
    /// Reads a folder that [`Checkpoints::save`] has written.
    ///
    /// # Errors
    /// Names the file that is missing or damaged.
    pub fn read(path: &Path) -> anyhow::Result<Checkpoint> {
        let (run, checksums) = read_run(path)?;
        if checksums.is_none() {
            note(format!(
                "note: {} has no checksums, as it is of an older trainer: damage may go unseen",
                path.display()
            ));
        }
        let tokenizer_path = path.join(TOKENIZER);
        let tokenizer = std::fs::read(&tokenizer_path);
        let tokenizer = tokenizer.with_context(|| format!("checkpoint file {}", tokenizer_path.display()))?;
        let tensors_path = path.join(TENSORS);
        let bytes = map(&tensors_path).with_context(|| format!("checkpoint file {}", tensors_path.display()))?;
        if let Some(checksums) = checksums {
            ensure!(crc32c(&tokenizer) == checksums.tokenizer, "{}", damaged(&tokenizer_path));
            ensure!(crc32c(&bytes) == checksums.tensors, "{}", damaged(&tensors_path));
        }
        let mut tensors = read_tensors(&tensors_path, &bytes)?;
        if let Some((_, checksum)) = run.lora {
            let base_path = path.with_file_name(BASE);
            let base =
                map(&base_path).with_context(|| format!("the weights under the adapters of {}", path.display()))?;
            ensure!(crc32c(&base) == checksum, "{} is damaged, or of another run", base_path.display());
            tensors.extend(read_tensors(&base_path, &base)?);
        }
        Ok(Checkpoint { path: path.to_path_buf(), run, tensors, tokenizer })
    }

    /// Whether a folder holds a checkpoint.
    pub fn is_at(path: &Path) -> bool {
        path.join(RUN).is_file()
    }

    /// Takes the data of a tensor out of the checkpoint.
    ///
    /// # Errors
    /// The checkpoint has no such tensor, or one of another shape.
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

fn read_tensors(path: &Path, bytes: &[u8]) -> anyhow::Result<Vec<Tensor>> {
    let tensors = SafeTensors::deserialize(bytes).with_context(|| damaged(path))?;
    let tensors = tensors.iter().map(|(name, view)| {
        ensure!(view.dtype() == Dtype::F32, "{}: {name} is {:?}, not F32", path.display(), view.dtype());
        let data = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Ok(Tensor { name: name.to_owned(), shape: view.shape().to_vec(), data })
    });
    tensors.collect()
}

fn write_tensors(path: &Path, tensors: &[Tensor]) -> anyhow::Result<()> {
    let views = tensors.iter().map(|tensor| {
        let bytes = bytemuck::cast_slice(&tensor.data);
        Ok((tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?))
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(safetensors::serialize_to_file(views, None, path)?)
}

/// Name of a tensor in a checkpoint; `kind` is weight, moment1 or moment2, and for adapters the
/// same followed by _a, _b or _rows.
pub fn tensor_name(kind: &str, name: TensorName, layer: usize) -> String {
    format!("{kind}.{layer}.{}", name.as_str())
}

fn damaged(path: &Path) -> String {
    format!("{} is damaged: take another checkpoint", path.display())
}

/// The checkpoints of a run.
pub struct Checkpoints {
    folder: PathBuf,
    /// The steps, the oldest first.
    steps: Vec<Step>,
    keep_all: bool,
}

struct Step {
    iter: u64,
    path: PathBuf,
    /// Lowest validation loss up to this step; `None` if run.postcard cannot be read.
    best_loss: Option<f64>,
}

impl Step {
    /// The step in this folder, if the folder is named as a step.
    fn find(path: PathBuf) -> Option<Step> {
        let name = path.file_name()?.to_str()?;
        let iter = name.strip_prefix("step-")?.parse().ok().filter(|&iter| step_name(iter) == name)?;
        let best_loss = read_run(&path).ok().map(|(run, _)| run.best_loss);
        Some(Step { iter, path, best_loss })
    }
}

fn step_name(iter: u64) -> String {
    format!("step-{iter:08}")
}

impl Checkpoints {
    /// Lists the checkpoints in `out_dir` and changes nothing.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(out_dir: &Path) -> anyhow::Result<Checkpoints> {
        let folder = out_dir.join("checkpoints");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        };
        let entries = entries.with_context(|| folder.display().to_string())?;
        let mut steps: Vec<Step> = entries.into_iter().filter_map(|entry| Step::find(entry.path())).collect();
        steps.sort_by_key(|step| step.iter);
        Ok(Checkpoints { folder, steps, keep_all: true })
    }

    /// Prepares the folder for a run that goes on from step `iter`: removes the unfinished files of
    /// a killed process, and renames later steps, which were passed over as damaged. `keep_all`
    /// keeps every step, else only the best and the last stay.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn begin(&mut self, iter: u64, keep_all: bool) -> anyhow::Result<()> {
        self.keep_all = keep_all;
        let mut attempt = || {
            std::fs::create_dir_all(&self.folder)?;
            remove_unfinished(&self.folder)?;
            for step in self.steps.extract_if(.., |step| step.iter > iter) {
                std::fs::rename(&step.path, free_name(&self.folder, &format!("damaged-{}", step_name(step.iter))))?;
            }
            self.remove_old()
        };
        attempt().map_err(|e: std::io::Error| e).with_context(|| self.folder.display().to_string())
    }

    /// Folder of the last checkpoint.
    pub fn last(&self) -> Option<&Path> {
        self.steps.last().map(|step| &*step.path)
    }

    /// The checkpoint with the lowest validation loss.
    fn best(&self) -> Option<&Step> {
        let lowest = self.steps.iter().rev().find_map(|step| step.best_loss).filter(|loss| loss.is_finite())?;
        self.steps.iter().find(|step| step.best_loss == Some(lowest))
    }

    /// Reads the last checkpoint that is whole.
    ///
    /// # Errors
    /// There are checkpoints, and all are damaged.
    pub fn read_last(&self) -> anyhow::Result<Option<Checkpoint>> {
        self.read_first(self.steps.iter().rev())
    }

    /// Reads the best checkpoint, or the last one that is whole.
    ///
    /// # Errors
    /// There are checkpoints, and all are damaged.
    pub fn read_best(&self) -> anyhow::Result<Option<Checkpoint>> {
        self.read_first(self.best().into_iter().chain(self.steps.iter().rev()))
    }

    /// Reads the first step that is whole, and says what is wrong with the step that it replaces.
    fn read_first<'a>(&self, steps: impl Iterator<Item = &'a Step>) -> anyhow::Result<Option<Checkpoint>> {
        let mut damage = None;
        for step in steps {
            match (Checkpoint::read(&step.path), damage.take()) {
                (Ok(checkpoint), None) => return Ok(Some(checkpoint)),
                (Ok(checkpoint), Some(e)) => {
                    note(format!("note: {e:#}: {} is whole, and taken in its place", step.path.display()));
                    return Ok(Some(checkpoint));
                }
                (Err(e), first) => damage = first.or(Some(e)),
            }
        }
        match damage {
            Some(e) => Err(e.context(format!("no checkpoint in {} is whole", self.folder.display()))),
            None => Ok(None),
        }
    }

    /// Writes a checkpoint as the last one, then removes the older ones that need not stay.
    ///
    /// # Errors
    /// Names the checkpoint that could not be written, and the one before it.
    pub fn save(&mut self, run: &Run, tensors: &[Tensor], tokenizer: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(step_name(run.iter));
        let best_loss = Some(run.best_loss);
        match self.steps.last_mut().filter(|step| step.iter == run.iter) {
            Some(step) => {
                // An interrupt saved this step; now its evaluation is known too.
                step.best_loss = best_loss;
                let checksums = read_run(&path)?.1.map_or_else(|| Checksums::of(&path), Ok)?;
                write_whole(&path.join(RUN), |out| Ok(out.write_all(&encode_run(run, checksums)?)?))?;
            }
            None => {
                let written = self.write(&path, run, tensors, tokenizer);
                let last =
                    self.last().map_or("there is none before it".into(), |path| format!("{} is whole", path.display()));
                written.with_context(|| format!("writing checkpoint {} ({last})", path.display()))?;
                self.steps.push(Step { iter: run.iter, path, best_loss });
            }
        }
        self.remove_old().with_context(|| format!("removing old checkpoints from {}", self.folder.display()))
    }

    /// Writes the weights under the adapters of a run that begins. Returns their checksum.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn save_base(&self, tensors: &[Tensor]) -> anyhow::Result<u32> {
        let path = self.folder.join(BASE);
        let temporary = self.folder.join(format!("{UNFINISHED}{BASE}"));
        let attempt = || {
            write_tensors(&temporary, tensors)?;
            File::open(&temporary)?.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            sync_folder(&self.folder)?;
            Ok(crc32c(&map(&path)?))
        };
        attempt().map_err(|e: anyhow::Error| e).with_context(|| format!("writing {}", path.display()))
    }

    fn write(&self, path: &Path, run: &Run, tensors: &[Tensor], tokenizer: &[u8]) -> anyhow::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // open to all, as other new folders; tempfile makes them private
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = builder.tempdir_in(&self.folder)?;
        write_tensors(&temporary.path().join(TENSORS), tensors)?;
        std::fs::write(temporary.path().join(TOKENIZER), tokenizer)?;
        std::fs::write(temporary.path().join(RUN), encode_run(run, Checksums::of(temporary.path())?)?)?;
        for name in [TENSORS, RUN, TOKENIZER] {
            File::open(temporary.path().join(name))?.sync_all()?;
        }
        sync_folder(temporary.path())?;
        std::fs::rename(temporary.path(), path)?;
        let _ = temporary.keep(); // nothing to delete: the folder has been renamed
        Ok(sync_folder(&self.folder)?)
    }

    /// Removes all steps but the best and the last. A step whose run.postcard cannot be read stays,
    /// since its weights may still be wanted.
    fn remove_old(&mut self) -> std::io::Result<()> {
        if self.keep_all {
            return Ok(());
        }
        let kept = [self.best().map(|step| step.iter), self.steps.last().map(|step| step.iter)];
        let old = |step: &mut Step| step.best_loss.is_some() && !kept.contains(&Some(step.iter));
        for step in self.steps.extract_if(.., old) {
            // The new name is not that of a step: a process that is killed here leaves no half
            // step.
            let doomed = free_name(&self.folder, &format!("{UNFINISHED}{}", step_name(step.iter)));
            std::fs::rename(&step.path, &doomed)?;
            remove(&doomed)?;
        }
        Ok(())
    }
}

/// A path in the folder that does not exist yet: with this name, or with a number behind it.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let numbered = (2u64..).map(|i| folder.join(format!("{name}-{i}")));
    let mut paths = std::iter::once(folder.join(name)).chain(numbered);
    paths.find(|path| !path.exists()).expect("some number is free")
}

#[cfg(test)]
mod tests;
