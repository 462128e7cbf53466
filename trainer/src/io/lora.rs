//! Low-rank adapters: in place of a matrix W (out, in), the training changes A (rank, in) and B
//! (out, rank), and the model computes with W + scale · B A (Hu et al. 2021, arXiv:2106.09685).
//!
//! The rows of the classifier of the tokens that end an answer are trained too. A model that was
//! never taught to stop has no use for such a token: its row is that of any other unused one, and
//! no adapter could tell them apart.

use infer_core::format::TensorName;
use infer_core::{Config, Error};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::io::tensors::{Shape, shapes};

/// The most tokens of which rows are trained: as many as a header has to end a text.
const MAX_ENDS: usize = 8;

/// The adapters of a training: every matrix of every layer has one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rows of A, and columns of B.
    pub rank: usize,
    /// The rank times the scale of B A.
    pub alpha: f32,
    /// Tokens whose rows of the classifier are trained.
    pub ends: [Option<u32>; MAX_ENDS],
}

impl Lora {
    /// Adapters of this rank and alpha.
    pub fn new(rank: usize, alpha: f32) -> Lora {
        Lora { rank, alpha, ends: [None; MAX_ENDS] }
    }

    /// The same with the rows of up to eight tokens.
    pub fn with_ends(mut self, ends: &[u32]) -> Lora {
        self.ends.iter_mut().zip(ends).for_each(|(place, token)| *place = Some(*token));
        self
    }

    /// The tokens whose rows of the classifier are trained.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        self.ends.into_iter().flatten()
    }

    /// The shape of what is trained, in the order of the model, each with the end of its kind in a
    /// checkpoint: A and B of each matrix, and what is added to rows of the classifier.
    ///
    /// # Errors
    /// As [`shapes`](Self::shapes).
    pub fn parts(&self, config: &Config) -> Result<Vec<(Shape, &'static str)>, Error> {
        let pairs = self.shapes(config)?.into_iter().flat_map(|[a, b]| [(a, "_a"), (b, "_b")]);
        let (name, rows) = (classifier(config), self.ends().count());
        let rows = (rows > 0).then_some((Shape { name, layer: 0, rows, cols: config.dim }, "_rows"));
        Ok(pairs.chain(rows).collect())
    }

    /// Adds to rows of the classifier (vocab_size, dim).
    pub fn add_rows(&self, classifier: &mut [f32], rows: &[f32], dim: usize) {
        for (token, row) in self.ends().zip(rows.chunks_exact(dim)) {
            let classifier = &mut classifier[token as usize * dim..][..dim];
            classifier.iter_mut().zip(row).for_each(|(w, row)| *w += row);
        }
    }

    /// The factor of B A.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Shapes of A and B of each matrix, in the order of [`shapes`].
    ///
    /// # Errors
    /// The configuration breaks a rule of [`Config::check`].
    pub fn shapes(&self, config: &Config) -> Result<Vec<[Shape; 2]>, Error> {
        let adapted = shapes(config)?.into_iter().filter(|shape| is_adapted(shape.name));
        let rank = self.rank;
        Ok(adapted.map(|shape| [Shape { rows: rank, ..shape }, Shape { cols: rank, ..shape }]).collect())
    }

    /// Adds scale · B A to rows of a matrix, given A and the same rows of B. The sum has one order,
    /// so that a model that is merged is the one that was trained, bit for bit.
    pub fn merge(&self, w: &mut [f32], a: &[f32], b: &[f32]) {
        let (cols, scale) = (a.len() / self.rank, self.scale());
        w.par_chunks_mut(cols).zip(b.par_chunks(self.rank)).for_each(|(w, b)| {
            for (b, a) in b.iter().zip(a.chunks_exact(cols)) {
                let factor = scale * b;
                w.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
            }
        });
    }
}

/// The table of which rows are trained.
pub fn classifier(config: &Config) -> TensorName {
    if config.shared_classifier { TensorName::TokEmb } else { TensorName::Wcls }
}

/// Whether a matrix has an adapter. The embedding, the classifier and the norms have none.
pub fn is_adapted(name: TensorName) -> bool {
    use TensorName::{W1, W2, W3, Wk, Wo, Wq, Wv};
    matches!(name, Wq | Wk | Wv | Wo | W1 | W2 | W3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_the_product() {
        let lora = Lora::new(2, 6.0);
        let mut w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // (2, 3)
        let (a, b) = ([1.0, 0.0, 2.0, 0.0, 1.0, 1.0], [1.0, 2.0, 0.0, -1.0]);
        lora.merge(&mut w, &a, &b);
        assert_eq!(w, [4.0, 8.0, 15.0, 4.0, 2.0, 3.0]);
        lora.with_ends(&[1]).add_rows(&mut w, &[1.0, 2.0, 3.0], 3);
        assert_eq!(w, [4.0, 8.0, 15.0, 5.0, 4.0, 6.0]);
    }

    #[test]
    fn every_matrix_of_a_layer_is_adapted() {
        let config = Config::new(16, 24, 2, 4, 19, 70).with_kv_heads(2).with_own_classifier();
        let shapes = Lora::new(3, 6.0).shapes(&config).unwrap();
        assert_eq!(shapes.len(), 7 * 2);
        let k = shapes.iter().find(|[a, _]| (a.name, a.layer) == (TensorName::Wk, 1)).unwrap();
        assert_eq!(k.map(|shape| (shape.rows, shape.cols)), [(3, 16), (8, 3)]);
    }
}
