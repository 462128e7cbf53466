//! The adapters of a model whose own weights stay as they are; see [`Lora`].

use anyhow::ensure;
use dfdx::prelude::Cpu;
use infer_core::format::TensorName;

use super::device::Matrix;
use super::llama::{Adapters, Backend, Llama, Parameter, normal};
use crate::io::lora::{Lora, classifier};

/// An adapter, and its scale.
pub(super) struct Adapter<'a> {
    pub a: &'a Matrix<Cpu>, // (rank, in)
    pub b: &'a Matrix<Cpu>, // (out, rank)
    pub scale: f32,
}

impl<D: Backend> Llama<D> {
    /// Adds adapters that change nothing yet: A is random, with deviation 1 / √in so that it keeps
    /// the size of its input; B and what is added to rows are zero.
    ///
    /// # Errors
    /// The device has no memory.
    pub fn adapt(&mut self, lora: Lora, seed: u64) -> anyhow::Result<()> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let values = lora.parts(&self.config)?.into_iter().map(|(shape, part)| match part {
            "_a" => normal(&mut rng, 1.0 / (shape.cols as f64).sqrt(), shape.size()),
            _ => vec![0.0; shape.size()],
        });
        let values: Vec<_> = values.collect();
        self.adapt_with(lora, &values)
    }

    /// Adds adapters of given values, in the order of [`Lora::parts`].
    ///
    /// # Errors
    /// Number or size of the slices is not that of the adapters, or the device has no memory.
    pub fn adapt_with(&mut self, lora: Lora, values: &[impl AsRef<[f32]>]) -> anyhow::Result<()> {
        let shapes = lora.parts(&self.config)?;
        ensure!(values.len() == shapes.len(), "{} adapters given, the model has {}", values.len(), shapes.len());
        let vocab_size = self.config.vocab_size;
        ensure!(lora.ends().all(|token| (token as usize) < vocab_size), "a token of {:?} is unknown", lora.ends);
        for ((shape, _), values) in shapes.iter().zip(values) {
            let (n, expected) = (values.as_ref().len(), shape.size());
            ensure!(n == expected, "an adapter of {} has {n} values, not {expected}", shape.name.as_str());
        }
        let shapes = shapes.into_iter().map(|(shape, _)| shape).collect();
        let mut values = values.iter().map(|values| values.as_ref().to_vec());
        let parameters = self.device.parameters(&self.config, shapes, |_| values.next().unwrap_or_default())?;
        self.adapters = Some(Adapters { lora, parameters });
        Ok(())
    }

    /// What a training changes: the adapters, or all weights of a model without adapters.
    pub fn trained(&self) -> &[Parameter<D>] {
        self.adapters.as_ref().map_or(&self.parameters, |adapters| &adapters.parameters)
    }

    /// Copies all weights, with the adapters added to them.
    ///
    /// # Errors
    /// The device fails.
    pub fn merged(&self) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut weights = self.to_vecs()?;
        let Some(Adapters { lora, parameters }) = &self.adapters else { return Ok(weights) };
        let (pairs, rows) = parameters.as_chunks();
        for [a, b] in pairs {
            let is_its = |p: &Parameter<D>| (p.shape.name, p.shape.layer) == (a.shape.name, a.shape.layer);
            if let Some(i) = self.parameters.iter().position(is_its) {
                lora.merge(&mut weights[i], &D::values(a)?, &D::values(b)?);
            }
        }
        if let (Some(rows), Some(i)) = (rows.first(), self.parameters.iter().position(|p| p.shape.name == self.table()))
        {
            lora.add_rows(&mut weights[i], &D::values(rows)?, self.config.dim);
        }
        Ok(weights)
    }

    /// The name of the classifier.
    pub(super) fn table(&self) -> TensorName {
        classifier(&self.config)
    }
}

impl Llama<Cpu> {
    /// As [`trained`](Self::trained), to change it.
    pub(super) fn trained_mut(&mut self) -> &mut [Parameter<Cpu>] {
        self.adapters.as_mut().map_or(&mut self.parameters, |adapters| &mut adapters.parameters)
    }

    /// What is added to rows of the classifier.
    pub(super) fn rows(&self) -> Option<&Matrix<Cpu>> {
        let (_, rows) = self.adapters.as_ref()?.parameters.as_chunks::<2>();
        rows.first().map(|rows| &rows.tensor)
    }

    pub(super) fn adapter(&self, name: TensorName, layer: usize) -> Option<Adapter<'_>> {
        let adapters = self.adapters.as_ref()?;
        let (pairs, _) = adapters.parameters.as_chunks();
        let [a, b] = pairs.iter().find(|[a, _]| (a.shape.name, a.shape.layer) == (name, layer))?;
        Some(Adapter { a: &a.tensor, b: &b.tensor, scale: adapters.lora.scale() })
    }
}
