//! AdamW with decay on matrices only, and clipping.

use super::llama::{Backend, Gradients, Llama, Parameter};
use super::rates::Rates;

/// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); norm weights do not decay.
pub struct AdamW<D: Backend> {
    /// Decay rates of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the matrices, relative to the learning rate.
    pub weight_decay: f64,
    /// Updates done so far.
    pub steps: u32,
    moments: [Gradients<D>; 2],
}

impl<D: Backend> AdamW<D> {
    /// Makes an optimiser with moments of zero.
    ///
    /// # Errors
    /// The device has no memory.
    pub fn new(model: &Llama<D>, betas: [f64; 2], weight_decay: f64) -> anyhow::Result<Self> {
        let moments = [D::gradients(model, 1.0)?, D::gradients(model, 1.0)?];
        Ok(AdamW { betas, eps: 1e-8, weight_decay, steps: 0, moments })
    }

    /// Updates the model once.
    ///
    /// # Errors
    /// The device fails.
    pub fn step(
        &mut self,
        model: &mut Llama<D>,
        learning_rate: f64,
        gradients: &mut Gradients<D>,
    ) -> anyhow::Result<()> {
        self.steps += 1;
        D::adam(model, &self.rates(learning_rate), &mut self.moments, gradients)
    }

    /// The rates of the update that is counted last in `steps`.
    pub(super) fn rates(&self, learning_rate: f64) -> Rates {
        Rates {
            betas: self.betas.map(|beta| beta as f32),
            corrections: self.betas.map(|beta| (1.0 / (1.0 - beta.powi(self.steps as i32))) as f32),
            lr: learning_rate as f32,
            eps: self.eps as f32,
            decay: (learning_rate * self.weight_decay) as f32,
        }
    }

    /// Copies the first and the second moments, each in the order of the parameters.
    ///
    /// # Errors
    /// The device fails.
    pub fn moments(&mut self, model: &Llama<D>) -> anyhow::Result<[Vec<Vec<f32>>; 2]> {
        let [moment1, moment2] = &mut self.moments;
        let copies = |moments: &mut Gradients<D>| {
            let copy = |parameter: &Parameter<D>| {
                let mut values = vec![0.0; parameter.shape.size()];
                D::read_gradient(parameter, moments, &mut values)?;
                Ok(values)
            };
            model.trained().iter().map(copy).collect::<anyhow::Result<_>>()
        };
        Ok([copies(moment1)?, copies(moment2)?])
    }

    /// Takes back copies that [`moments`](Self::moments) made after so many steps.
    ///
    /// # Errors
    /// Number or size of the slices is not that of the model.
    pub fn set_moments(
        &mut self,
        model: &Llama<D>,
        moments: [&[impl AsRef<[f32]>]; 2],
        steps: u32,
    ) -> anyhow::Result<()> {
        self.steps = steps;
        for (store, moments) in self.moments.iter_mut().zip(moments) {
            anyhow::ensure!(moments.len() == model.trained().len(), "{} moments for another model", moments.len());
            for (parameter, moment) in model.trained().iter().zip(moments) {
                let (moment, shape) = (moment.as_ref(), (parameter.shape.rows, parameter.shape.cols));
                anyhow::ensure!(moment.len() == parameter.shape.size(), "a moment of another shape than {shape:?}");
                D::write_gradient(parameter, store, moment)?;
            }
        }
        Ok(())
    }
}

/// Scales the gradients so that their norm is at most `max_norm`, and returns the norm before. 0 or
/// less does not clip.
///
/// # Errors
/// The device fails.
pub fn clip_gradients<D: Backend>(
    model: &Llama<D>,
    gradients: &mut Gradients<D>,
    max_norm: f32,
) -> anyhow::Result<f32> {
    let norm = D::sum_of_squares(model, gradients)?.sqrt() as f32;
    if let Some(factor) = clip_factor(norm, max_norm) {
        D::scale(model, gradients, factor)?;
    }
    Ok(norm)
}

/// What gradients of this norm are multiplied by, if they are clipped: the formula of
/// torch.nn.utils.clip_grad_norm_.
pub(super) fn clip_factor(norm: f32, max_norm: f32) -> Option<f32> {
    (max_norm > 0.0 && norm > max_norm).then(|| max_norm / (norm + 1e-6))
}
