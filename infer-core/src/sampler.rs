//! From logits to a token, so that a seed tells the story that it tells in llama2.c.

use crate::error::Error;
use crate::math::{check_finite, max, softmax};

/// Scratch of top-p sampling: one candidate.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ProbIndex {
    /// Probability.
    pub prob: f32,
    /// Token.
    pub index: u32,
}

/// Temperature, nucleus and random state.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    topp: f32,
    rng: u64,
}

impl Sampler {
    /// `temperature` 0 takes the most likely token; 1 samples the model's distribution. `topp` (nucleus sampling, Holtzman
    /// et al., 2020) keeps the most likely tokens up to that probability mass; 0 and 1 turn it off.
    ///
    /// # Errors
    /// [`Error::Setting`] for a temperature that is negative or not finite, a `topp` outside 0..=1, or seed 0, which the
    /// generator would repeat for ever.
    pub fn new(temperature: f32, topp: f32, seed: u64) -> Result<Sampler, Error> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            let rule = "it must be a number from 0 (always the most likely token) upwards";
            return Err(Error::Setting { name: "temperature", value: f64::from(temperature), rule });
        }
        if !(0.0..=1.0).contains(&topp) {
            let rule = "it must be between 0 and 1 (0 and 1 turn it off)";
            return Err(Error::Setting { name: "top-p", value: f64::from(topp), rule });
        }
        if seed == 0 {
            return Err(Error::Setting { name: "seed", value: 0.0, rule: "it must not be 0" });
        }
        Ok(Sampler { temperature, topp, rng: seed })
    }

    /// Whether [`sample`](Sampler::sample) needs scratch: one element per logit.
    pub fn needs_scratch(&self) -> bool {
        self.temperature > 0.0 && self.topp > 0.0 && self.topp < 1.0
    }

    /// Picks a token. The logits are overwritten with probabilities unless the temperature is 0.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`] for scratch shorter than the logits where it is needed, [`Error::NotFinite`] for a NaN or
    /// an infinity.
    pub fn sample(&mut self, logits: &mut [f32], scratch: &mut [ProbIndex]) -> Result<u32, Error> {
        check_finite(logits)?;
        let (need, have) = (logits.len(), scratch.len());
        if self.needs_scratch() && have < need {
            return Err(Error::BufferTooSmall { buffer: "sampler scratch", need, have });
        }
        if self.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        let coin = self.coin();
        if !(max(logits) / self.temperature).is_finite() {
            return Ok(argmax(logits)); // so cold that nothing else is left
        }
        for logit in logits.iter_mut() {
            *logit /= self.temperature;
        }
        softmax(logits);
        Ok(if self.needs_scratch() { sample_topp(logits, self.topp, coin, scratch) } else { sample_all(logits, coin) })
    }

    /// Draws as many random numbers as [`sample`](Sampler::sample) and picks nothing: for a position whose token is
    /// already known, where the order of random numbers must be kept.
    pub fn skip(&mut self) {
        if self.temperature > 0.0 {
            self.coin();
        }
    }

    /// xorshift* (Marsaglia; Vigna, 2016): the high bits as a number in 0..1.
    fn coin(&mut self) -> f32 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        let high = (self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32;
        (high >> 8) as f32 / 16_777_216.0
    }
}

/// The first of the largest.
fn argmax(x: &[f32]) -> u32 {
    const CHUNK: usize = 64;
    let max = max(x);
    // Chunks without an early exit, so that the search vectorises.
    let chunk = x.chunks(CHUNK).position(|x| x.iter().fold(false, |found, &x| found | (x == max))).unwrap_or(0);
    let rest = x.iter().skip(chunk * CHUNK);
    (chunk * CHUNK + rest.take(CHUNK).position(|&x| x == max).unwrap_or(0)) as u32
}

/// The first index whose cumulated probability exceeds the coin; the last one if rounding leaves none.
fn sample_all(probs: &[f32], coin: f32) -> u32 {
    let mut cdf = 0.0;
    for (i, prob) in probs.iter().enumerate() {
        cdf += prob;
        if coin < cdf {
            return i as u32;
        }
    }
    probs.len().saturating_sub(1) as u32
}

/// Samples among the most likely tokens whose mass just exceeds `topp`.
fn sample_topp(probs: &[f32], topp: f32, coin: f32, scratch: &mut [ProbIndex]) -> u32 {
    // Smaller probabilities cannot be part of the nucleus: they would have to be, all together, above 1 - topp.
    let cutoff = (1.0 - topp) / (probs.len() as f32 - 1.0);
    let mut n = 0;
    for (i, &prob) in probs.iter().enumerate() {
        if prob >= cutoff
            && let Some(slot) = scratch.get_mut(n)
        {
            *slot = ProbIndex { prob, index: i as u32 };
            n += 1;
        }
    }
    // Candidates leave a heap in order of probability, and only as many as the nucleus needs: sorting all of them would
    // take longer than a small model. Those that have left lie behind the heap, the first at the end.
    let Some(candidates) = scratch.get_mut(..n) else { return argmax(probs) };
    heapify(candidates);
    let mut mass = 0.0;
    let mut heap_len = n;
    while heap_len > 0 && mass <= topp {
        heap_len -= 1;
        swap(candidates, 0, heap_len);
        mass += candidates.get(heap_len).map_or(0.0, |c| c.prob);
        sift_down(candidates, 0, heap_len);
    }
    let nucleus = candidates.get(heap_len..).unwrap_or(&[]).iter().rev();
    let r = coin * mass;
    let mut cdf = 0.0;
    let mut last = None;
    for candidate in nucleus {
        cdf += candidate.prob;
        if r < cdf {
            return candidate.index;
        }
        last = Some(candidate.index);
    }
    last.unwrap_or_else(|| argmax(probs))
}

/// Order of the nucleus: by probability, then by lower token.
fn before(a: &ProbIndex, b: &ProbIndex) -> bool {
    a.prob > b.prob || (a.prob == b.prob && a.index < b.index)
}

fn heapify(heap: &mut [ProbIndex]) {
    for root in (0..heap.len() / 2).rev() {
        sift_down(heap, root, heap.len());
    }
}

/// Moves the element at `root` down until no child among the first `len` elements comes before it.
fn sift_down(heap: &mut [ProbIndex], mut root: usize, len: usize) {
    let Some(heap) = heap.get_mut(..len) else { return };
    loop {
        let child = 2 * root + 1;
        let Some(&left) = heap.get(child) else { return };
        let (child, winner) = match heap.get(child + 1) {
            Some(&right) if before(&right, &left) => (child + 1, right),
            _ => (child, left),
        };
        match heap.get(root) {
            Some(parent) if before(&winner, parent) => swap(heap, root, child),
            _ => return,
        }
        root = child;
    }
}

/// `swap` that does nothing for an index out of range, instead of panicking.
fn swap(heap: &mut [ProbIndex], a: usize, b: usize) {
    if let Ok([a, b]) = heap.get_disjoint_mut([a, b]) {
        core::mem::swap(a, b);
    }
}

#[cfg(test)]
mod tests;
