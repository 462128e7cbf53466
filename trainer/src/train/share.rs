//! The share of one rank in the steps and the evaluations of its group.

use crate::data::batches::Batch;
use crate::model::{Backend, IGNORED, Llama};
use crate::train::corpus::{Sequences, for_model};
use crate::train::group::Group;
use crate::train::settings::Settings;

/// Says which part is this rank's.
#[derive(Clone, Copy)]
pub struct Share<'a> {
    /// Those of the run; `batch_size` and `gradient_accumulation_steps` are those of a rank.
    pub settings: &'a Settings,
    /// The group.
    pub group: &'a Group,
}

impl Share<'_> {
    /// Sequences of a step of all ranks.
    pub fn sequences(self) -> u64 {
        let Settings { batch_size, gradient_accumulation_steps, .. } = *self.settings;
        (batch_size * gradient_accumulation_steps * self.group.size()) as u64
    }

    /// Tokens of a step of all ranks.
    pub fn tokens(self) -> u64 {
        self.sequences() * self.settings.max_seq_len as u64
    }

    /// The passes of this rank in a step whose first sequence has the number `first`, with their
    /// numbers among those of all ranks. The ranks take turns, so that rank and pass together count
    /// as the passes of one process do.
    ///
    /// # Errors
    /// As [`Sequences::training`].
    pub fn batches(self, sequences: &mut Sequences<'_>, first: u64) -> anyhow::Result<Vec<(u64, Batch)>> {
        let n = self.settings.batch_size;
        let passes = (0..self.settings.gradient_accumulation_steps).map(|pass| pass * self.group.size());
        let numbers = passes.map(|pass| (pass + self.group.rank()) as u64);
        numbers.map(|number| Ok((number, sequences.training(first + number * n as u64, n)?))).collect()
    }

    /// The loss in nats per token that counts, on fixed sequences, and the tokens per byte. The
    /// ranks take turns here too, and add all results up in the order of one process: the sum is
    /// the same to the last bit.
    ///
    /// # Errors
    /// Those of any rank.
    pub fn mean_loss<D: Backend>(
        self,
        model: &Llama<D>,
        sequences: &Sequences<'_>,
        token_lengths: &[usize],
    ) -> anyhow::Result<(f64, f64)> {
        let (s, ranks) = (self.settings, self.group.size());
        // As many as have sequences.
        let batches = s.eval_iters.min(sequences.number().div_ceil(s.batch_size as u64) as usize);
        // Loss, sequences and bytes of a batch; of one behind the last, nothing.
        let measure = |i: usize| {
            let Some(batch) = sequences.fixed(i, batches, s.batch_size)? else { return Ok([0.0; 3]) };
            let n = batch.counted() as f64 / s.max_seq_len as f64;
            let counted = batch.y.iter().filter(|target| **target != IGNORED);
            let bytes = counted.map(|&token| token_lengths[token as usize]).sum::<usize>();
            Ok([f64::from(model.loss(&for_model(&batch, s.max_seq_len))?) * n, n, bytes as f64])
        };
        let turns = batches.div_ceil(ranks);
        let mine = (0..turns).map(|turn| measure(turn * ranks + self.group.rank()));
        let mine = self.group.agree(mine.collect::<anyhow::Result<Vec<_>>>())?;
        let all = self.group.gather(mine.as_flattened());
        let all = all.as_chunks::<3>().0;
        let in_order = (0..turns * ranks).map(|i| all[i % ranks * turns + i / ranks]);
        let [sum, n, bytes] = in_order.fold([0.0; 3], |sums, batch| [0, 1, 2].map(|i| sums[i] + batch[i]));
        Ok((sum / n, n * s.max_seq_len as f64 / bytes))
    }
}
