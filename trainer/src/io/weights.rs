//! Weights on the host, and the model file that they are written to.

use std::borrow::Cow;
use std::io;

use anyhow::anyhow;
use clap::ValueEnum;
use infer_core::format::{self, Header, TensorName, Version, WriteError};
use infer_core::{Error, WeightType};
use serde::{Deserialize, Serialize};

use crate::io::checkpoint::{Checkpoint, tensor_name};
use crate::io::foreign::Values;
use crate::io::lora::{classifier, is_adapted};
use crate::io::rotary;
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

impl FileVersion {
    /// The lowest version that can say everything about the model of a header.
    pub fn least(of: &Header) -> FileVersion {
        if of.is_plain() { FileVersion::V0 } else { FileVersion::V1 }
    }

    /// The header of a file of this version for the model of another header.
    ///
    /// # Errors
    /// The version cannot hold the model.
    pub fn header(self, of: &Header) -> Result<Header, Error> {
        let config = of.config.with_weights(WeightType::F32);
        let (version, config) = match self {
            FileVersion::V0 => (Version::V0, config),
            FileVersion::V1 => (Version::V1, config),
            FileVersion::V2 => (Version::V2, config.quantized()?),
        };
        let header = Header::new(version, config).with_tokens(of.tokens).with_template(of.template);
        header.to_bytes()?;
        Ok(header)
    }
}

/// Weights of a model on the host.
pub struct Weights {
    /// Shape of the model, special tokens and chat template.
    pub header: Header,
    /// In the order of [`shapes`].
    pub tensors: Vec<Vec<f32>>,
}

impl Weights {
    /// Takes the weights out of a checkpoint, with the adapters added to them.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn from_checkpoint(checkpoint: &mut Checkpoint) -> anyhow::Result<Weights> {
        let (header, lora) = (checkpoint.run.header(), checkpoint.run.lora);
        let tensors = shapes(&header.config)?.into_iter().map(|Shape { name, layer, rows, cols }| {
            let mut weights = checkpoint.take(&tensor_name("weight", name, layer), &[rows, cols])?;
            if let Some((lora, _)) = lora.filter(|_| is_adapted(name)) {
                let a = checkpoint.take(&tensor_name("weight_a", name, layer), &[lora.rank, cols])?;
                let b = checkpoint.take(&tensor_name("weight_b", name, layer), &[rows, lora.rank])?;
                lora.merge(&mut weights, &a, &b);
            }
            if let Some((lora, _)) =
                lora.filter(|(lora, _)| name == classifier(&header.config) && lora.ends().count() > 0)
            {
                let added = checkpoint.take(&tensor_name("weight_rows", name, layer), &[lora.ends().count(), cols])?;
                lora.add_rows(&mut weights, &added, cols);
            }
            Ok(weights)
        });
        Ok(Weights { header, tensors: tensors.collect::<anyhow::Result<_>>()? })
    }

    /// The bytes of a model file.
    ///
    /// # Errors
    /// A weight is not finite, or the version cannot hold the model.
    pub fn to_file(&self, version: FileVersion) -> anyhow::Result<Vec<u8>> {
        let header = version.header(&self.header)?;
        let mut file = Vec::new();
        let values = |name, layer| rotary::read(self, &header.config, name, layer);
        format::write(&mut file, &header, values).map_err(not_finite)?;
        Ok(file)
    }
}

/// Says what a weight that is not finite means.
pub fn not_finite(error: WriteError) -> anyhow::Error {
    match error {
        WriteError::NotFinite { name, layer, .. } => {
            let name = name.as_str();
            anyhow!("{name} of layer {layer}: a weight is not a finite number: the training diverged")
        }
        error => error.into(),
    }
}

impl Values for Weights {
    fn read(&self, name: TensorName, layer: usize) -> io::Result<Cow<'_, [f32]>> {
        let shapes = shapes(&self.header.config).map_err(io::Error::other)?;
        let i = shapes.iter().position(|shape| (shape.name, shape.layer) == (name, layer));
        let tensor = i.and_then(|i| self.tensors.get(i));
        let tensor = tensor.ok_or_else(|| io::Error::other(format!("no {} of layer {layer}", name.as_str())))?;
        Ok(Cow::Borrowed(tensor))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use infer_core::Config;

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
        let header = Header::new(Version::V1, config);
        Weights { header, tensors: shapes(&config).unwrap().iter().map(|s| values(s.size())).collect() }
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
