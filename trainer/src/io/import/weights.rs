//! The weights of a model in another format, one tensor at a time: finds them by the format's
//! names, checks their shapes before anything is written, joins the parts of a divided model and
//! brings the rows of wq and wk into llama2.c's order.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;

use anyhow::{Context, bail, ensure};
use infer_core::Config;
use infer_core::format::{Header, Tensor, TensorName, Version};

use crate::io::foreign::Values;
use crate::io::import::tensors::{Stored, Table, shown};

/// The names that a format has for tensors.
#[derive(Clone, Copy)]
pub struct Names {
    /// The name of a tensor of a layer.
    pub name: fn(TensorName, usize) -> String,
    /// Whether a tensor may be there and is not needed, such as a table of rotary angles.
    pub is_unneeded: fn(&str) -> bool,
    /// Rows of wq and wk that are rotated together lie half a head apart, as in Hugging Face's
    /// files. In llama2.c's they are neighbours.
    pub half_split: bool,
}

/// The weights of a model, in one or several parts.
pub struct Weights {
    parts: Vec<Table>,
    names: Names,
    config: Config,
}

impl Weights {
    /// Checks that the parts have all tensors of the model, with the right shapes, and no others.
    /// A classifier that equals the embedding is shared with it.
    ///
    /// # Errors
    /// Names a tensor that is missing, unknown or of another shape.
    pub fn new(parts: Vec<Table>, names: Names, config: Config) -> anyhow::Result<Weights> {
        let mut weights = Weights { parts, names, config };
        let layout = Header::new(Version::V1, config).layout()?;
        // A hostile configuration may claim 2^31 layers.
        let tensors = weights.parts.iter().flat_map(Table::names).count();
        ensure!(config.n_layers <= tensors, "{} layers are claimed, and there are {tensors} tensors", config.n_layers);
        let mut known = HashSet::new();
        for tensor in layout.iter() {
            for layer in 0..tensor.count {
                let name = (names.name)(tensor.name, layer);
                weights.join(&name, &tensor)?;
                known.insert(name);
            }
        }
        if config.shared_classifier {
            known.insert((names.name)(TensorName::Wcls, 0)); // some files repeat the embedding
        }
        for name in weights.parts.iter().flat_map(Table::names) {
            if !known.contains(name) && !(names.is_unneeded)(name) {
                bail!("tensor {}: {}", shown(name), reason(name, &config));
            }
        }
        if !config.shared_classifier && weights.has_equal_classifier()? {
            weights.config.shared_classifier = true;
        }
        Ok(weights)
    }

    /// The configuration, with what the weights tell about the classifier.
    pub fn config(&self) -> Config {
        self.config
    }

    fn has_equal_classifier(&self) -> anyhow::Result<bool> {
        for part in &self.parts {
            let [classifier, embedding] = [TensorName::Wcls, TensorName::TokEmb].map(|name| (self.names.name)(name, 0));
            if !part.are_equal(part.get(&classifier)?, part.get(&embedding)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How the parts of a tensor make up the whole one.
    fn join(&self, name: &str, tensor: &Tensor) -> anyhow::Result<Join> {
        let (rows, cols, n) = (tensor.rows as u64, tensor.cols as u64, self.parts.len() as u64);
        let mut join = None;
        for part in &self.parts {
            let stored = part.get(name)?;
            let shape = match stored.shape[..] {
                [cols] => (1, cols),
                [rows, cols] => (rows, cols),
                _ => (0, 0),
            };
            let found = match shape {
                shape if shape == (rows, cols) => Join::Same,
                (r, c) if r.checked_mul(n) == Some(rows) && c == cols => Join::Rows,
                (r, c) if r == rows && c.checked_mul(n) == Some(cols) => Join::Columns,
                _ => bail!(
                    "{}: tensor {name} has the shape {:?}, and the configuration asks for ({rows}, {cols}){}",
                    part.file(stored).path.display(),
                    stored.shape,
                    if n > 1 { format!(" in {n} parts") } else { String::new() }
                ),
            };
            ensure!(*join.get_or_insert(found) == found, "tensor {name} is cut differently in the parts of the model");
        }
        join.context("no file of weights")
    }

    fn read_joined(&self, tensor: &Tensor, layer: usize) -> anyhow::Result<Vec<f32>> {
        let name = (self.names.name)(tensor.name, layer);
        let join = self.join(&name, tensor)?;
        let parts: Vec<&Stored> = self.parts.iter().map(|part| part.get(&name)).collect::<anyhow::Result<_>>()?;
        let read = |i: usize| -> anyhow::Result<Vec<f32>> {
            let in_tensor = || format!("{}: tensor {name}", self.parts[i].file(parts[i]).path.display());
            self.parts[i].read(parts[i]).with_context(in_tensor)
        };
        if join == Join::Same {
            return read(0);
        }
        let mut values = vec![0.0; tensor.rows * tensor.cols];
        for i in 0..parts.len() {
            let part = read(i)?;
            match join {
                Join::Columns => {
                    let cols = tensor.cols / parts.len();
                    let rows = values.chunks_exact_mut(tensor.cols).zip(part.chunks_exact(cols));
                    rows.for_each(|(row, part)| row[i * cols..][..cols].copy_from_slice(part));
                }
                _ => values[i * part.len()..][..part.len()].copy_from_slice(&part),
            }
        }
        Ok(values)
    }
}

impl Values for Weights {
    fn read(&self, name: TensorName, layer: usize) -> io::Result<Cow<'_, [f32]>> {
        let layout = Header::new(Version::V1, self.config).layout().map_err(io::Error::other)?;
        let tensor = layout.get(name).ok_or(io::ErrorKind::NotFound)?;
        let values = self.read_joined(&tensor, layer).map_err(|e| io::Error::other(format!("{e:#}")))?;
        if let Some(index) = values.iter().position(|w| !w.is_finite()) {
            let name = (self.names.name)(name, layer);
            let message = format!("tensor {name}: weight {index} is not a finite number: the model is damaged");
            return Err(io::Error::other(message));
        }
        let heads = match name {
            TensorName::Wq => self.config.n_heads,
            TensorName::Wk => self.config.n_kv_heads,
            _ => return Ok(values.into()),
        };
        Ok(if self.names.half_split { interleave(&values, heads, tensor.cols).into() } else { values.into() })
    }
}

/// How the parts of a tensor make up the whole one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Join {
    /// Each part has the whole tensor.
    Same,
    /// Each part has some of the rows.
    Rows,
    /// Each part has some of the columns.
    Columns,
}

/// Brings row i of the second half of each head behind row i of the first half.
fn interleave(values: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let head = values.len() / heads;
    let mut rows = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks_exact(cols).zip(second.chunks_exact(cols)) {
            rows.extend_from_slice(a);
            rows.extend_from_slice(b);
        }
    }
    rows
}

/// Says why a tensor stands in the way.
fn reason(name: &str, config: &Config) -> String {
    let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
    match layer {
        Some(layer) if layer >= config.n_layers => {
            format!("the configuration says {} layers", config.n_layers)
        }
        _ if name.ends_with(".bias") => "models with biases cannot be computed here".into(),
        _ if name.contains("expert") || name.contains("block_sparse_moe") || name.contains("gate_inp") => {
            "mixtures of experts cannot be computed here".into()
        }
        _ => "no tensor of a Llama model has this name, so that the model computes something else".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_are_interleaved() {
        // Two heads of four rows with two columns: row r is (r, r).
        let values: Vec<f32> = (0..8).flat_map(|row| [row as f32; 2]).collect();
        let rows: Vec<f32> = interleave(&values, 2, 2).chunks_exact(2).map(|row| row[0]).collect();
        assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
