//! Weights to a model file, by infer-core's table of tensors.

use std::path::{Path, PathBuf};

use crate::model::shapes;
use anyhow::{Context, ensure};
use infer_core::format::{Header, TensorName, Version, quantize_group};
use infer_core::math::rope_frequency;
use infer_core::{Config, WeightType};
use serde::{Deserialize, Serialize};

use crate::io::checkpoint::{Checkpoint, RUN, TENSORS, TOKENIZER};
use crate::io::files::{folder_of, open_model, remove_unfinished, write_whole};
use crate::io::inference::tokenizer_index;
use crate::report::output::say;
use crate::report::{CURVE, METRICS};
use crate::train::settings::SETTINGS;

/// Version of a model file on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum FileVersion {
    /// f32, 28-byte header: what llama2.c's run.c reads
    #[value(name = "0")]
    #[serde(rename = "0")]
    V0,
    /// f32, 256-byte header
    #[value(name = "1")]
    #[serde(rename = "1")]
    V1,
    /// int8: what llama2.c's runq.c reads
    #[value(name = "2")]
    #[serde(rename = "2")]
    V2,
}

/// Writes a checkpoint as a model file that infer-cli, infer-core and llama2.c read, with
/// tokenizer.bin beside it
#[derive(clap::Args)]
pub struct Args {
    /// Folder of a checkpoint, or out_dir of a run for its best one
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The model file to write, in a folder without another model's tokenizer.bin
    #[arg(value_name = "OUT.bin")]
    output: PathBuf,
    /// Version of the model file
    #[arg(long, value_enum, default_value = "0")]
    version: FileVersion,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut checkpoint = crate::io::inference::find_checkpoint(&args.checkpoint)?
        .with_context(|| format!("{} is no checkpoint and holds none", args.checkpoint.display()))?;
    let weights = Weights::from_checkpoint(&mut checkpoint)?;
    let target = Target { path: args.output.clone(), version: args.version, way: "give another OUT.bin" };
    let inputs = [TENSORS, RUN].map(|name| checkpoint.path.join(name));
    target.check(&weights.config, &[&inputs[0], &inputs[1]])?;
    target.write(&weights, &checkpoint.tokenizer)?;
    say(&format!("{} (step {}) to {}", checkpoint.path.display(), checkpoint.run.iter, args.output.display()))
}

/// Weights of a model on the host.
pub struct Weights {
    pub config: Config,
    /// In the order of [`shapes`].
    pub tensors: Vec<Vec<f32>>,
}

impl Weights {
    pub fn from_checkpoint(checkpoint: &mut Checkpoint) -> anyhow::Result<Weights> {
        let config = checkpoint.run.config();
        let tensors = shapes(&config).into_iter().map(|(name, layer, rows, cols)| {
            checkpoint.take(&crate::io::checkpoint::tensor_name("weight", name, layer), &[rows, cols])
        });
        Ok(Weights { config, tensors: tensors.collect::<anyhow::Result<_>>()? })
    }

    /// The bytes of a model file.
    pub fn to_file(&self, version: FileVersion) -> anyhow::Result<Vec<u8>> {
        let config = self.config;
        let header = match version {
            FileVersion::V0 => Header { version: Version::V0, config },
            FileVersion::V1 => Header { version: Version::V1, config },
            FileVersion::V2 => Header { version: Version::V2, config: config.quantized()? },
        };
        let shapes = shapes(&config);
        let mut out = header.to_bytes()?[..header.size()].to_vec();
        for tensor in header.layout()?.iter() {
            for layer in 0..tensor.count {
                let name = tensor.name;
                let given = shapes.iter().position(|&(n, l, ..)| (n, l) == (name, layer));
                let computed;
                let values = match given {
                    Some(i) => &self.tensors[i],
                    None => {
                        computed = rotations(&config, name);
                        &computed
                    }
                };
                write_tensor(&mut out, values, tensor.weights)
                    .with_context(|| format!("{} of layer {layer}", name.as_str()))?;
            }
        }
        Ok(out)
    }
}

/// The table of rotary angles of version 0, which readers skip: (seq_len, head_size / 2).
fn rotations(config: &Config, name: TensorName) -> Vec<f32> {
    let part = if name == TensorName::FreqCisReal { f32::cos } else { f32::sin };
    let half = config.head_size() / 2;
    let angle = |i: usize| (i / half) as f32 * rope_frequency(i % half, config.head_size());
    (0..config.seq_len * half).map(|i| part(angle(i))).collect()
}

fn write_tensor(out: &mut Vec<u8>, values: &[f32], weights: WeightType) -> anyhow::Result<()> {
    ensure!(values.iter().all(|value| value.is_finite()), "a weight is not a finite number: the training diverged");
    let WeightType::Q8 { group_size } = weights else {
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        return Ok(());
    };
    let mut scales = Vec::new();
    let mut q = vec![0; group_size];
    for group in values.chunks_exact(group_size) {
        scales.extend(quantize_group(group, &mut q).unwrap_or_default().to_le_bytes());
        out.extend(q.iter().map(|&q| q as u8));
    }
    out.extend(scales);
    Ok(())
}

/// Where a model goes, and in which version.
pub struct Target<'a> {
    pub path: PathBuf,
    pub version: FileVersion,
    /// What to do if the model cannot go there.
    pub way: &'a str,
}

impl Target<'_> {
    /// Refuses a place that cannot be written, or holds an input, and a model that the version
    /// cannot hold.
    pub fn check(&self, config: &Config, inputs: &[&Path]) -> anyhow::Result<()> {
        let Target { path, way, .. } = self;
        if self.version == FileVersion::V2 {
            ensure!(
                config.quantized().is_ok(),
                "dim is {} and hidden_dim is {}: int8 takes multiples of 4 for both, best of 64; choose others, or file \
                 version 0 or 1",
                config.dim,
                config.hidden_dim
            );
        }
        let name = path.display();
        let is_folder = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
        ensure!(!is_folder, "{name} is a folder, not the model file to write: {way}");
        let taken = [TOKENIZER, SETTINGS, METRICS, CURVE];
        ensure!(
            path.file_name().is_some_and(|name| taken.iter().all(|taken| name != *taken)),
            "{name:?} cannot be the model file: a run has another file of this name: {way}"
        );
        if let Ok(there) = path.canonicalize() {
            let is_there = |input: &&Path| input.canonicalize().is_ok_and(|input| input == there);
            ensure!(!inputs.iter().any(is_there), "{name} is read here, and would be overwritten: {way}");
        }
        // An empty file may be there to keep the name.
        let is_free = |there: std::fs::Metadata| there.is_file() && (there.len() == 0 || open_model(path).is_ok());
        ensure!(path.metadata().ok().is_none_or(is_free), "{name} is no model file, and would be overwritten: {way}");
        let folder = folder_of(path);
        let writable = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
        writable.with_context(|| format!("{name} cannot be written: {way}"))?;
        Ok(())
    }

    /// Refuses a tokenizer that is not whole, and one that would replace another: the models beside
    /// that one would tell gibberish. Returns whether it is there already.
    pub fn check_tokenizer(&self, config: &Config, tokenizer: &[u8]) -> anyhow::Result<bool> {
        tokenizer_index(tokenizer, config.vocab_size).context("the tokenizer of this run")?;
        let path = self.path.with_file_name(TOKENIZER);
        match std::fs::read(&path) {
            Ok(there) => ensure!(
                there == tokenizer,
                "{} is another vocabulary than that of {}, and may belong to a model beside it: {}",
                path.display(),
                self.path.display(),
                self.way
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).with_context(|| format!("{}: {}", path.display(), self.way)),
        }
        Ok(true)
    }

    /// Writes the model file, with its tokenizer beside it.
    pub fn write(&self, weights: &Weights, tokenizer: &[u8]) -> anyhow::Result<()> {
        let bytes = weights.to_file(self.version)?;
        if !self.check_tokenizer(&weights.config, tokenizer)? {
            write_whole(&self.path.with_file_name(TOKENIZER), |out| Ok(out.write_all(tokenizer)?))?;
        }
        _ = remove_unfinished(folder_of(&self.path)); // what others have left there may not be ours to remove
        write_whole(&self.path, |out| Ok(out.write_all(&bytes)?))
    }
}

#[cfg(test)]
mod tests {
    use infer_core::Model;

    use super::*;
    use crate::io::inference::aligned;

    /// Weights that are all different.
    fn weights() -> Weights {
        let config = crate::train::settings::tests::parse(&["--dim=16", "--n-layers=2", "--n-kv-heads=2"], None)
            .unwrap()
            .config();
        let mut next = 0f32;
        let mut values = |n: usize| {
            (0..n)
                .map(|_| {
                    next += 1.0;
                    (next * 0.37).sin()
                })
                .collect()
        };
        Weights { config, tensors: shapes(&config).iter().map(|(_, _, rows, cols)| values(rows * cols)).collect() }
    }

    #[test]
    fn every_tensor_of_a_file_is_where_infer_core_looks_for_it() {
        let weights = weights();
        for version in [FileVersion::V0, FileVersion::V1] {
            let file = aligned(&weights.to_file(version).unwrap());
            let model = Model::from_bytes(bytemuck::cast_slice(&file)).unwrap();
            assert_eq!(*model.config(), weights.config);
            let read = crate::model::Llama::from_model(&model, &dfdx::prelude::Cpu::default()).unwrap().to_vecs();
            assert_eq!(read, weights.tensors, "{version:?}");
        }
    }

    #[test]
    fn int8_weights_are_within_half_a_step() {
        let weights = weights();
        let file = aligned(&weights.to_file(FileVersion::V2).unwrap());
        let model = Model::from_bytes(bytemuck::cast_slice(&file)).unwrap();
        let read = crate::model::Llama::from_model(&model, &dfdx::prelude::Cpu::default()).unwrap().to_vecs();
        for (read, given) in read.iter().flatten().zip(weights.tensors.iter().flatten()) {
            assert!((read - given).abs() <= 0.5 / 127.0 + 1e-6, "{read} {given}");
        }
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        let mut weights = weights();
        weights.tensors[3][5] = f32::NAN;
        for version in [FileVersion::V0, FileVersion::V2] {
            assert!(format!("{:#}", weights.to_file(version).unwrap_err()).contains("diverged"));
        }
    }
}
