//! Picks tokens from logits by llama2.c's rules: the same seed tells the same story.
//!
//! Exponentials are added one after the other in f32, in the order of the tokens, as llama2.c adds
//! them. In the lanes of [`math`](crate::math) the sum of 32,000 would be more exact, but differ by
//! up to 6e-5, and the nucleus would end elsewhere.

use crate::error::Error;
use crate::math::exp;
use crate::math::native::max;

/// One candidate of sampling within limits. The sampler's scratch is a slice of them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ProbIndex {
    /// Probability.
    pub prob: f32,
    /// Token.
    pub index: u32,
}

/// Temperature, limits and random state.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    topp: f32,
    top_k: usize,
    min_p: f32,
    rng: u64,
}

impl Sampler {
    /// `temperature` 0 takes the most likely token; 1 samples the model's distribution. `topp`
    /// (nucleus sampling, Holtzman et al., 2020) keeps the most likely tokens up to that
    /// probability mass; 0 and 1 turn it off.
    ///
    /// # Errors
    /// [`Error::Setting`] for a temperature that is negative or not finite, a `topp` outside 0..=1,
    /// or seed 0, which the generator would repeat for ever.
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
        Ok(Sampler { temperature, topp, top_k: 0, min_p: 0.0, rng: seed })
    }

    /// Limits beside `topp`: `top_k` keeps that many of the most likely tokens (Fan et al., 2018),
    /// `min_p` those that are at least `min_p` times as likely as the most likely one (Nguyen et
    /// al., 2024). 0 turns either off, and both are off in a new sampler. Each limit is measured on
    /// the whole distribution, and a token must be within all of them.
    ///
    /// # Errors
    /// [`Error::Setting`] for a `min_p` outside 0..=1; the limits are then as before.
    pub fn limit(&mut self, top_k: usize, min_p: f32) -> Result<(), Error> {
        if !(0.0..=1.0).contains(&min_p) {
            let rule = "it must be between 0 (off) and 1";
            return Err(Error::Setting { name: "min-p", value: f64::from(min_p), rule });
        }
        (self.top_k, self.min_p) = (top_k, min_p);
        Ok(())
    }

    /// Whether [`sample`](Sampler::sample) needs scratch: one element per logit.
    pub fn needs_scratch(&self) -> bool {
        self.temperature > 0.0 && (self.has_nucleus() || self.top_k > 0 || self.min_p > 0.0)
    }

    fn has_nucleus(&self) -> bool {
        self.topp > 0.0 && self.topp < 1.0
    }

    /// Picks a token. A logit of minus infinity is a mask: that token is never picked. The logits
    /// are overwritten unless the temperature is 0.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`] for scratch shorter than the logits where it is needed,
    /// [`Error::NotFinite`] for a NaN or plus infinity, [`Error::AllMasked`] when no token is left.
    pub fn sample(&mut self, logits: &mut [f32], scratch: &mut [ProbIndex]) -> Result<u32, Error> {
        check_logits(logits)?;
        let largest = max(logits);
        if largest == f32::NEG_INFINITY {
            return Err(Error::AllMasked);
        }
        let (need, have) = (logits.len(), scratch.len());
        if self.needs_scratch() && have < need {
            return Err(Error::BufferTooSmall { buffer: "sampler scratch", need, have });
        }
        if self.temperature == 0.0 {
            return Ok(first(logits, largest));
        }
        let coin = self.coin();
        let largest_scaled = largest / self.temperature;
        if !largest_scaled.is_finite() {
            return Ok(first(logits, largest)); // so cold that nothing else is left
        }
        let sum = exponentials(logits, self.temperature, largest_scaled);
        Ok(if self.needs_scratch() {
            self.sample_limited(logits, sum, coin, scratch)
        } else {
            sample_all(logits, sum, coin)
        })
    }

    /// Draws as many random numbers as [`sample`](Sampler::sample) and picks nothing: for a
    /// position whose token is already known, where the order of random numbers must be kept.
    pub fn skip(&mut self) {
        if self.temperature > 0.0 {
            self.coin();
        }
    }

    /// The state of the random numbers, for [`set_rng`](Sampler::set_rng) to go on from.
    pub fn rng(&self) -> u64 {
        self.rng
    }

    /// Goes on with the random numbers from a state that [`rng`](Sampler::rng) gave.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0, which no generator comes to.
    pub fn set_rng(&mut self, rng: u64) -> Result<(), Error> {
        if rng == 0 {
            return Err(Error::Setting { name: "seed", value: 0.0, rule: "it must not be 0" });
        }
        self.rng = rng;
        Ok(())
    }

    /// xorshift* (Marsaglia; Vigna, 2016): the high bits as a number in 0..1.
    fn coin(&mut self) -> f32 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        let high = (self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32;
        (high >> 8) as f32 / 16_777_216.0
    }

    /// Samples among the most likely tokens: as many as all limits allow, up to the one whose mass
    /// exceeds `topp`.
    fn sample_limited(&self, weights: &[f32], sum: f32, coin: f32, scratch: &mut [ProbIndex]) -> u32 {
        let (topp, cutoff) = if self.has_nucleus() {
            // A smaller probability cannot be part of the nucleus: all smaller ones together are
            // below 1 - topp, so the others make up the nucleus.
            (self.topp, (1.0 - self.topp) / (weights.len() as f32 - 1.0))
        } else {
            (f32::INFINITY, 0.0)
        };
        let top_k = if self.top_k == 0 { usize::MAX } else { self.top_k };
        let n = collect(weights, sum, cutoff, self.min_p, scratch);
        // Candidates leave a heap in order of probability, and only as many as are needed: sorting
        // all of them would take longer than a small model. Those that have left lie behind the
        // heap, the first at the end.
        let Some(candidates) = scratch.get_mut(..n) else { return first(weights, LARGEST_WEIGHT) };
        heapify(candidates);
        let mut mass = 0.0;
        let mut heap_len = n;
        while heap_len > 0 && mass <= topp && n - heap_len < top_k {
            heap_len -= 1;
            swap(candidates, 0, heap_len);
            mass += candidates.get(heap_len).map_or(0.0, |c| c.prob);
            sift_down(candidates, 0, heap_len);
        }
        let r = coin * mass;
        let mut cdf = 0.0;
        let mut last = None;
        for candidate in candidates.get(heap_len..).unwrap_or(&[]).iter().rev() {
            cdf += candidate.prob;
            if r < cdf {
                return candidate.index;
            }
            last = Some(candidate.index);
        }
        last.unwrap_or_else(|| first(weights, LARGEST_WEIGHT))
    }
}

/// Makes tokens that came up recently less likely (Keskar et al., 2019): a positive logit of such a
/// token is divided by `penalty`, a negative one multiplied. A token counts once, however often it
/// came up; `penalty` 1 changes nothing. The time grows with the square of `recent`: a few hundred
/// tokens are usual.
///
/// # Errors
/// [`Error::Setting`] for a penalty that is not a finite number above 0, [`Error::Token`] for a
/// token without a logit; the logits are then as before.
pub fn penalize(logits: &mut [f32], recent: &[u32], penalty: f32) -> Result<(), Error> {
    if !(penalty.is_finite() && penalty > 0.0) {
        let rule = "it must be a number above 0 (1 turns it off)";
        return Err(Error::Setting { name: "repetition penalty", value: f64::from(penalty), rule });
    }
    if let Some(&token) = recent.iter().find(|&&token| token as usize >= logits.len()) {
        return Err(Error::Token { token, vocab_size: logits.len() });
    }
    let mut rest = recent;
    while let [token, others @ ..] = rest {
        rest = others;
        if !rest.contains(token)
            && let Some(logit) = logits.get_mut(*token as usize)
        {
            // At most MAX, since a tiny penalty would make an infinity.
            *logit = if *logit > 0.0 { (*logit / penalty).min(f32::MAX) } else { *logit * penalty };
        }
    }
    Ok(())
}

/// # Errors
/// [`Error::NotFinite`] with the first element that is NaN or plus infinity.
fn check_logits(logits: &[f32]) -> Result<(), Error> {
    // Without an early exit, so that it vectorises.
    if logits.iter().fold(true, |sound, &x| sound & (x < f32::INFINITY)) {
        return Ok(());
    }
    Err(Error::NotFinite { token: logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY).unwrap_or(0) })
}

/// Number of elements that a loop examines before it may end early. Such loops vectorise.
const CHUNK: usize = 64;

/// The first element equal to `value`.
fn first(x: &[f32], value: f32) -> u32 {
    let chunk = x.chunks(CHUNK).position(|x| x.iter().fold(false, |found, &x| found | (x == value))).unwrap_or(0);
    let rest = x.iter().skip(chunk * CHUNK);
    (chunk * CHUNK + rest.take(CHUNK).position(|&x| x == value).unwrap_or(0)) as u32
}

/// The numerator that [`exponentials`] gives to the largest logit.
const LARGEST_WEIGHT: f32 = 1.0;

/// Replaces the logits by the numerators of softmax, `exp(x / temperature - max)`, and returns
/// their sum. `max` is the largest of the quotients. A masked logit gets 0, and so does a numerator
/// below e^-87.
fn exponentials(x: &mut [f32], temperature: f32, max: f32) -> f32 {
    let mut sum = 0.0;
    // In chunks, so that a processor computes the next exponentials while it waits for the
    // additions, each of which needs the one before.
    for chunk in x.chunks_mut(CHUNK) {
        for x in chunk.iter_mut() {
            *x = exp(*x / temperature - max);
        }
        for x in chunk.iter() {
            sum += *x;
        }
    }
    sum
}

/// The first index whose cumulated probability exceeds the coin; the last possible one if rounding
/// leaves none.
fn sample_all(weights: &[f32], sum: f32, coin: f32) -> u32 {
    let mut cdf = 0.0;
    for (i, weight) in weights.iter().enumerate() {
        cdf += weight / sum;
        if coin < cdf {
            return i as u32;
        }
    }
    weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0) as u32
}

/// Puts the tokens with probabilities of at least `cutoff` and weights of at least `min_weight`
/// into `scratch`, and returns their number. Tokens of weight 0 are left out.
fn collect(weights: &[f32], sum: f32, cutoff: f32, min_weight: f32, scratch: &mut [ProbIndex]) -> usize {
    // Compared without a division first, a little lower than rounding could matter: most chunks
    // have no candidate.
    let floor = (cutoff * sum * 0.999_999).max(min_weight).max(f32::MIN_POSITIVE);
    let mut n = 0;
    for (c, chunk) in weights.chunks(CHUNK).enumerate() {
        if !chunk.iter().fold(false, |found, &weight| found | (weight >= floor)) {
            continue;
        }
        for (i, &weight) in chunk.iter().enumerate() {
            let prob = weight / sum;
            if weight >= floor
                && prob >= cutoff
                && let Some(slot) = scratch.get_mut(n)
            {
                *slot = ProbIndex { prob, index: (c * CHUNK + i) as u32 };
                n += 1;
            }
        }
    }
    n
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

/// Swaps two elements. An index out of range does nothing, where slice's `swap` would panic.
fn swap(heap: &mut [ProbIndex], a: usize, b: usize) {
    if let Ok([a, b]) = heap.get_disjoint_mut([a, b]) {
        core::mem::swap(a, b);
    }
}

#[cfg(test)]
mod tests;
