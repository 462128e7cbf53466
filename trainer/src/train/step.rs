//! A step of a run: the gradients of its passes on all ranks, and the update of the weights.

use anyhow::ensure;

use crate::data::batches::{Batch, mix};
use crate::io::loss_scale::LossScale;
use crate::model::{self, Backend, Dtype, Gradients, Options, clip_gradients};
use crate::train::corpus::for_model;
use crate::train::run::Training;
use crate::train::schedule::learning_rate;
use crate::train::share::Share;

impl<D: Backend> Training<'_, D> {
    /// Updates the weights once. Returns the loss before the update.
    ///
    /// # Errors
    /// The data cannot be read, the training diverges, or the device fails.
    pub(super) fn step(&mut self) -> anyhow::Result<f64> {
        let group = self.group;
        self.model.loss_scale = self.loss_scale().map_or(1.0, |scale| scale.scale);
        let share = Share { settings: self.settings, group };
        let batches = group.agree(share.batches(&mut self.train, self.run.sequences))?;
        let mut gradients = self.model.zero_gradients_of(batches.len() * group.size())?;
        self.run.sequences += share.sequences();
        let counted = batches.iter().map(|(_, batch)| batch.counted()).sum::<usize>() as f64;
        let counted = group.gather(&[counted]).iter().sum();
        let mut loss = group.agree(self.gradients(&batches, counted, &mut gradients))?;
        group.sum(&self.model, &mut gradients, &mut loss, self.devices.as_deref())?;
        let norm = clip_gradients(&self.model, &mut gradients, self.settings.grad_clip as f32)?;
        if self.devices.is_some() {
            group.check_same("norm of the gradients", f64::from(norm))?;
        }
        let can_step = self.can_step(norm);
        if group.alike(can_step)? {
            self.optimizer.step(&mut self.model, learning_rate(self.settings, self.run.iter), &mut gradients)?;
        }
        self.run.iter += 1;
        Ok(f64::from(loss))
    }

    /// Adds the gradients of this rank's passes up. Returns its part of the loss.
    fn gradients(&self, batches: &[(u64, Batch)], counted: f64, gradients: &mut Gradients<D>) -> anyhow::Result<f32> {
        let s = self.settings;
        let mut loss = 0.0;
        for (micro, batch) in batches {
            // Every token counts the same, however many there are in its pass.
            let scale = (batch.counted() as f64 / counted) as f32;
            let taught = self.teacher.as_ref().map(|teacher| teacher.logits(&batch.x, s.batch_size, s.max_seq_len));
            let taught = taught.transpose()?;
            let teacher = taught.as_ref().map(|logits| model::Teacher {
                logits,
                weight: s.teacher_weight as f32,
                temperature: s.teacher_temperature as f32,
            });
            let seed = mix(&[s.seed, self.run.iter, *micro]);
            let options = Options { dropout: s.dropout as f32, seed, teacher };
            loss +=
                self.model.loss_and_gradients(&for_model(batch, s.max_seq_len), &options, scale, gradients)? * scale;
        }
        self.check_finite("loss", f64::from(loss))?;
        Ok(loss)
    }

    /// The scale of a training in float16.
    fn loss_scale(&self) -> Option<LossScale> {
        self.run.loss_scale.filter(|_| self.model.dtype == Dtype::Float16)
    }

    /// Whether the gradients can be used: in float16 they may overflow, which the loss scale learns
    /// from.
    fn can_step(&mut self, norm: f32) -> anyhow::Result<bool> {
        let Some(mut scale) = self.loss_scale() else {
            self.check_finite("norm of the gradients", f64::from(norm))?;
            return Ok(true);
        };
        let can_step = scale.update(norm.is_finite());
        self.run.loss_scale = Some(scale);
        if scale.is_used_up() {
            self.check_finite("norm of the gradients", f64::from(norm))?;
        }
        if !can_step {
            self.report.say(format!(
                "step {} is skipped, as its gradients overflow: loss scale {}, {} steps skipped so far",
                self.run.iter, scale.scale, scale.skipped
            ));
        }
        Ok(can_step)
    }

    /// Checks that a number of this step is one.
    ///
    /// # Errors
    /// It is not: the training diverges.
    pub(super) fn check_finite(&self, what: &str, value: f64) -> anyhow::Result<()> {
        let last = match self.checkpoints.last() {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        };
        ensure!(
            value.is_finite(),
            "the {what} is {value} at step {}: the training diverged; lower learning_rate. {last}",
            self.run.iter
        );
        Ok(())
    }
}
