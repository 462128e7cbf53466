//! Batches of sequences, in an order that is a pure function of the seed and the number of the
//! sequence: a run that resumes goes on with exactly the sequences that it has not seen.

use anyhow::ensure;

use crate::data::shards::Shard;

/// Sequences of one pass.
#[derive(Default)]
pub struct Batch {
    /// Inputs, (batch_size, max_seq_len).
    pub x: Vec<u32>,
    /// Targets, of the same shape: the inputs one position on, or
    /// [`IGNORED`](crate::model::IGNORED).
    pub y: Vec<u32>,
    /// Where in its sequence the text of each position begins, if sequences have several texts.
    pub starts: Option<Vec<u32>>,
}

/// Cuts shards into sequences and picks those of each batch.
///
/// A sequence has `len` inputs and begins at a multiple of `len` in its shard. Its last target is
/// the first input of the next sequence. An epoch takes the shards in random order and the
/// sequences of each shard in random order, so that only one shard needs to be in memory.
pub struct Batches<'a> {
    shards: Vec<&'a Shard>,
    len: usize,
    seed: u64,
    epoch: Option<Epoch>,
}

struct Epoch {
    number: u64,
    /// Numbers of the shards, in the order of this epoch.
    order: Vec<usize>,
    /// Place in `order` of the shard in use.
    place: usize,
    /// Numbers of its sequences, in the order of this epoch.
    sequences: Vec<u32>,
}

impl<'a> Batches<'a> {
    /// Batches of the sequences of these shards.
    ///
    /// # Errors
    /// Fewer tokens than one sequence takes; the message names the flag that sets `len`.
    pub fn new(shards: Vec<&'a Shard>, len: usize, seed: u64, flag: &str) -> anyhow::Result<Batches<'a>> {
        let batches = Batches { shards, len, seed, epoch: None };
        let tokens: usize = batches.shards.iter().map(|shard| shard.n_tokens()).sum();
        ensure!(
            batches.sequences() > 0,
            "there are {tokens} tokens, and one sequence takes {}: give more text, or a smaller {flag}",
            len + 1
        );
        Ok(batches)
    }

    /// Number of sequences in one epoch.
    pub fn sequences(&self) -> u64 {
        self.shards.iter().map(|shard| in_shard(shard, self.len)).sum()
    }

    /// The `n` sequences from number `first` on, counted from the beginning of the training.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn training(&mut self, first: u64, n: usize) -> anyhow::Result<Batch> {
        let mut batch = self.empty(n);
        for number in first..first + n as u64 {
            let (shard, sequence) = self.locate(number);
            self.push(&mut batch, shard, sequence)?;
        }
        Ok(batch)
    }

    /// Batch `i` of `batches` batches of `n` sequences each. They are spread evenly over the data
    /// and do not depend on the seed. `None` once there are no more sequences.
    ///
    /// # Errors
    /// As [`Shard::read`].
    pub fn fixed(&self, i: usize, batches: usize, n: usize) -> anyhow::Result<Option<Batch>> {
        let all = self.sequences();
        let wanted = (batches.saturating_mul(n) as u64).min(all);
        let numbers = (i * n) as u64..(((i + 1) * n) as u64).min(wanted);
        if numbers.is_empty() {
            return Ok(None);
        }
        let mut batch = self.empty(n);
        for number in numbers {
            let mut sequence = number * all / wanted;
            let mut shard = 0;
            while sequence >= in_shard(self.shards[shard], self.len) {
                sequence -= in_shard(self.shards[shard], self.len);
                shard += 1;
            }
            self.push(&mut batch, shard, sequence)?;
        }
        Ok(Some(batch))
    }

    fn empty(&self, n: usize) -> Batch {
        Batch { x: Vec::with_capacity(n * self.len), y: Vec::with_capacity(n * self.len), starts: None }
    }

    fn push(&self, batch: &mut Batch, shard: usize, sequence: u64) -> anyhow::Result<()> {
        let mut tokens = vec![0; self.len + 1];
        self.shards[shard].read(sequence as usize * self.len, &mut tokens)?;
        batch.x.extend(&tokens[..self.len]);
        batch.y.extend(&tokens[1..]);
        Ok(())
    }

    /// Finds sequence `number` of the training: its shard, and its number in the shard.
    fn locate(&mut self, number: u64) -> (usize, u64) {
        let (number, mut rest) = (number / self.sequences(), number % self.sequences());
        if self.epoch.as_ref().is_none_or(|epoch| epoch.number != number) {
            let order = shuffled(self.shards.len() as u32, self.seed, number, 0);
            let order = order.into_iter().map(|shard| shard as usize).collect();
            self.epoch = Some(Epoch { number, order, place: usize::MAX, sequences: Vec::new() });
        }
        let Some(epoch) = &mut self.epoch else { unreachable!("set above") };
        let mut place = 0;
        while rest >= in_shard(self.shards[epoch.order[place]], self.len) {
            rest -= in_shard(self.shards[epoch.order[place]], self.len);
            place += 1;
        }
        let shard = epoch.order[place];
        if epoch.place != place {
            epoch.place = place;
            let n = in_shard(self.shards[shard], self.len) as u32;
            epoch.sequences = shuffled(n, self.seed, number, 1 + shard as u64);
        }
        (shard, u64::from(epoch.sequences[rest as usize]))
    }
}

fn in_shard(shard: &Shard, len: usize) -> u64 {
    (shard.n_tokens().saturating_sub(1) / len) as u64
}

/// The numbers below `n` in a random order, which depends on `seed`, `epoch` and `what` alone.
pub(super) fn shuffled(n: u32, seed: u64, epoch: u64, what: u64) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..n).collect();
    fastrand::Rng::with_seed(mix(&[seed, epoch, what])).shuffle(&mut numbers);
    numbers
}

/// Makes a seed of several numbers, by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
pub fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |state: u64, &number| {
        let mut z = (state ^ number).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards of these lengths. Their tokens count upwards through all shards.
    fn shards(folder: &std::path::Path, lens: &[u16]) -> Vec<Shard> {
        let mut next = 0u16;
        let shard = |&len: &u16| {
            let path = folder.join(format!("{next}.bin"));
            let tokens: Vec<u8> = (next..next + len).flat_map(u16::to_le_bytes).collect();
            next += len;
            std::fs::write(&path, tokens).unwrap();
            Shard::open_file(path, 2, 1 << 16).unwrap()
        };
        lens.iter().map(shard).collect()
    }

    /// The first token of each sequence.
    fn starts(batch: &Batch, len: usize) -> Vec<u32> {
        assert!(batch.x.iter().zip(&batch.y).all(|(x, y)| x + 1 == *y), "targets are one on");
        batch.x.iter().step_by(len).copied().collect()
    }

    #[test]
    fn an_epoch_has_every_sequence_once_in_an_order_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        // 4, 0 and 8 sequences of 10; the last 9 tokens of the last shard are left over.
        let shards = shards(folder.path(), &[41, 3, 90]);
        let new = |seed| Batches::new(shards.iter().collect(), 10, seed, "--len").unwrap();
        let (mut batches, mut other) = (new(1), new(2));
        let epochs: Vec<_> = (0..3).map(|epoch| starts(&batches.training(12 * epoch, 12).unwrap(), 10)).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort();
            assert_eq!(sorted, [0, 10, 20, 30, 44, 54, 64, 74, 84, 94, 104, 114]);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        assert_ne!(starts(&other.training(0, 12).unwrap(), 10), epochs[0]);
        // Asked for one by one and backwards, the sequences are the same: their order depends on
        // their number alone.
        let mut again = new(1);
        for number in (0..36).rev() {
            let one = starts(&again.training(number as u64, 1).unwrap(), 10);
            assert_eq!(one[0], epochs[number / 12][number % 12]);
        }
    }

    #[test]
    fn fixed_batches_spread_over_the_data() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(folder.path(), &[41, 90]);
        let batches = Batches::new(shards.iter().collect(), 10, 1, "--len").unwrap();
        let all = |n, size| -> Vec<u32> {
            (0..n).flat_map(|i| batches.fixed(i, n, size).unwrap().map_or(vec![], |batch| starts(&batch, 10))).collect()
        };
        assert_eq!(all(2, 2), [0, 30, 61, 91]);
        assert_eq!(all(9, 3).len(), 12, "no more than there are");
        assert_eq!(all(2, 2), all(2, 2));
    }

    #[test]
    fn too_little_data_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(folder.path(), &[10]);
        let error = Batches::new(shards.iter().collect(), 10, 1, "--len").err().unwrap().to_string();
        assert!(error.contains("10 tokens") && error.contains("11: give more text, or a smaller --len"), "{error}");
    }
}
