//! Weights on the host, and the model file that they are written to.

use std::borrow::Cow;

use anyhow::bail;
use clap::ValueEnum;
use infer_core::Config;
use infer_core::format::{self, Header, Version, WriteError};
use serde::{Deserialize, Serialize};

use crate::io::checkpoint::{Checkpoint, tensor_name};
use crate::io::tensors::{Shape, shapes};

/// Version of a model file on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
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

/// Weights of a model on the host.
pub struct Weights {
    /// Shape of the model.
    pub config: Config,
    /// In the order of [`shapes`].
    pub tensors: Vec<Vec<f32>>,
}

impl Weights {
    /// Takes the weights out of a checkpoint.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn from_checkpoint(checkpoint: &mut Checkpoint) -> anyhow::Result<Weights> {
        let config = checkpoint.run.config();
        let tensors = shapes(&config)?.into_iter().map(|Shape { name, layer, rows, cols }| {
            checkpoint.take(&tensor_name("weight", name, layer), &[rows, cols])
        });
        Ok(Weights { config, tensors: tensors.collect::<anyhow::Result<_>>()? })
    }

    /// The bytes of a model file.
    ///
    /// # Errors
    /// A weight is not finite, or the version cannot hold the model.
    pub fn to_file(&self, version: FileVersion) -> anyhow::Result<Vec<u8>> {
        let config = self.config;
        let header = match version {
            FileVersion::V0 => Header { version: Version::V0, config },
            FileVersion::V1 => Header { version: Version::V1, config },
            FileVersion::V2 => Header { version: Version::V2, config: config.quantized()? },
        };
        let shapes = shapes(&config)?;
        let mut file = Vec::new();
        let written = format::write(&mut file, &header, |name, layer| {
            let i = shapes.iter().position(|shape| (shape.name, shape.layer) == (name, layer));
            Cow::Borrowed(i.map_or(&[], |i| &self.tensors[i]))
        });
        match written {
            Ok(()) => Ok(file),
            Err(WriteError::NotFinite { name, layer, .. }) => {
                let name = name.as_str();
                bail!("{name} of layer {layer}: a weight is not a finite number: the training diverged")
            }
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A model in which no two weights are equal.
    pub fn weights() -> Weights {
        let config = Config::new(16, 64, 2, 4, 512, 256).with_kv_heads(2);
        let mut next = 0f32;
        let mut values = |n: usize| {
            (0..n)
                .map(|_| {
                    next += 1.0;
                    (next * 0.37).sin()
                })
                .collect()
        };
        Weights { config, tensors: shapes(&config).unwrap().iter().map(|s| values(s.size())).collect() }
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
