//! AdamW with decay on matrices only, and clipping.

use dfdx::prelude::{AdamConfig, WeightDecay};

use super::device::{Gradients, combine, device_error};
use super::llama::{Backend, Llama};

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
    moment1: Gradients<D>,
    moment2: Gradients<D>,
    scratch: Vec<f32>,
}

impl<D: Backend> AdamW<D> {
    /// Makes an optimiser with moments of zero.
    ///
    /// # Errors
    /// The device has no memory.
    pub fn new(model: &Llama<D>, betas: [f64; 2], weight_decay: f64) -> anyhow::Result<Self> {
        let (moment1, moment2) = (model.zero_gradients()?, model.zero_gradients()?);
        Ok(AdamW { betas, eps: 1e-8, weight_decay, steps: 0, moment1, moment2, scratch: Vec::new() })
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
        for parameter in model.trained_mut() {
            let decay = (!parameter.shape.is_norm()).then_some(WeightDecay::Decoupled(self.weight_decay));
            let adam = AdamConfig { lr: learning_rate, betas: self.betas, eps: self.eps, weight_decay: decay };
            let tensor = &mut parameter.tensor;
            let m = self.moment1.get_or_alloc_mut(tensor).map_err(device_error::<D>)?;
            let v = self.moment2.get_or_alloc_mut(tensor).map_err(device_error::<D>)?;
            let gradient = gradients.get_or_alloc_mut(tensor).map_err(device_error::<D>)?;
            D::adam(&adam, self.steps, tensor, [m, v], gradient, &mut self.scratch).map_err(device_error::<D>)?;
        }
        Ok(())
    }

    /// Copies the first and the second moments, each in the order of the parameters.
    pub fn moments(&self, model: &Llama<D>) -> [Vec<Vec<f32>>; 2] {
        [&self.moment1, &self.moment2]
            .map(|moments| model.trained().iter().map(|p| moments.get(&p.tensor).as_vec()).collect())
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
        for (store, moments) in [&mut self.moment1, &mut self.moment2].into_iter().zip(moments) {
            anyhow::ensure!(moments.len() == model.trained().len(), "{} moments for another model", moments.len());
            for (parameter, moment) in model.trained().iter().zip(moments) {
                let (moment, shape) = (moment.as_ref().to_vec(), (parameter.shape.rows, parameter.shape.cols));
                anyhow::ensure!(moment.len() == parameter.shape.size(), "a moment of another shape than {shape:?}");
                let source = model.device.try_tensor_from_vec(moment, shape).map_err(device_error::<D>)?;
                let target = store.get_or_alloc_mut(&parameter.tensor).map_err(device_error::<D>)?;
                combine(&model.device, target, 0.0, source, 1.0).map_err(device_error::<D>)?;
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
    if max_norm > 0.0 && norm > max_norm {
        // The formula of torch.nn.utils.clip_grad_norm_.
        D::scale(model, gradients, max_norm / (norm + 1e-6))?;
    }
    Ok(norm)
}
