//! The order in which a model sees its data: a pure function of the seed and the number of the sequence, so that a run
//! that resumes goes on with exactly the sequences that it has not seen.

use anyhow::ensure;

use crate::shards::Shard;

/// Inputs and targets of one pass, both (batch_size, max_seq_len): targets are the inputs one position on.
pub struct Batch {
    pub x: Vec<u32>,
    pub y: Vec<u32>,
}

/// Sequences of `len` tokens, aligned to multiples of `len` in their shard, which overlap by the one token that is target
/// of the first and input of the second. An epoch goes through the shards in random order, and through the sequences of
/// each in random order: the pages in use are those of one shard.
pub struct Batches<'a> {
    shards: Vec<&'a Shard>,
    len: usize,
    seed: u64,
    epoch: Option<Epoch>,
}

struct Epoch {
    number: u64,
    /// Shards in order.
    order: Vec<usize>,
    /// The shard in use: its place in `order`, and its sequences in order.
    place: usize,
    sequences: Vec<u32>,
}

impl<'a> Batches<'a> {
    pub fn new(shards: Vec<&'a Shard>, len: usize, seed: u64) -> anyhow::Result<Batches<'a>> {
        let batches = Batches { shards, len, seed, epoch: None };
        let tokens: usize = batches.shards.iter().map(|shard| shard.len()).sum();
        ensure!(
            batches.sequences() > 0,
            "there are {tokens} tokens, and one sequence takes {}: give more text or a smaller max_seq_len",
            len + 1
        );
        Ok(batches)
    }

    /// Sequences of one epoch.
    pub fn sequences(&self) -> u64 {
        self.shards.iter().map(|shard| in_shard(shard, self.len)).sum()
    }

    /// The `n` sequences from number `first` on, counted since the beginning of the training.
    pub fn training(&mut self, first: u64, n: usize) -> anyhow::Result<Batch> {
        let mut batch = self.empty(n);
        for number in first..first + n as u64 {
            let (shard, sequence) = self.locate(number);
            self.push(&mut batch, shard, sequence)?;
        }
        Ok(batch)
    }

    /// Batch `i` of `batches` with `n` sequences each, spread evenly over the data, the same ones at each call. `None`
    /// once there are no more sequences.
    pub fn fixed(&self, i: usize, batches: usize, n: usize) -> anyhow::Result<Option<Batch>> {
        let all = self.sequences();
        let wanted = ((batches * n) as u64).min(all);
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
        Batch { x: Vec::with_capacity(n * self.len), y: Vec::with_capacity(n * self.len) }
    }

    fn push(&self, batch: &mut Batch, shard: usize, sequence: u64) -> anyhow::Result<()> {
        let mut tokens = vec![0; self.len + 1];
        self.shards[shard].read(sequence as usize * self.len, &mut tokens)?;
        batch.x.extend(&tokens[..self.len]);
        batch.y.extend(&tokens[1..]);
        Ok(())
    }

    /// Shard and sequence within it of sequence `number` of the training.
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
    (shard.len().saturating_sub(1) / len) as u64
}

/// The numbers below `n` in an order that depends on the seed, the epoch and what is shuffled.
fn shuffled(n: u32, seed: u64, epoch: u64, what: u64) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..n).collect();
    fastrand::Rng::with_seed(mix(&[seed, epoch, what])).shuffle(&mut numbers);
    numbers
}

/// A seed from several numbers, by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
pub fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |state: u64, &number| {
        let mut z = (state ^ number).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}
