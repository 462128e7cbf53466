use std::vec;
use std::vec::Vec;

use super::*;

/// Sampling as llama2.c writes it, with a full sort; `top_k` and `min_p` cut the sorted list.
fn naive(logits: &[f32], sampler: &Sampler, coin: f32) -> u32 {
    let &Sampler { temperature, topp, top_k, min_p, .. } = sampler;
    let scaled: Vec<f32> = logits.iter().map(|x| x / temperature).collect();
    let max = scaled.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let weights: Vec<f32> = scaled.iter().map(|x| exp(x - max)).collect();
    let sum = weights.iter().fold(0.0, |sum, weight| sum + weight);
    let probs: Vec<f32> = weights.iter().map(|weight| weight / sum).collect();

    let mut list: Vec<(f32, usize)> = probs.iter().copied().zip(0..).collect();
    let mut mass = 1.0;
    if sampler.needs_scratch() {
        let (topp, cutoff) = match topp {
            0.0 | 1.0 => (f32::INFINITY, 0.0),
            topp => (topp, (1.0 - topp) / (probs.len() as f32 - 1.0)),
        };
        list.retain(|&(p, i)| p >= cutoff && weights[i] > 0.0 && weights[i] >= min_p);
        list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if top_k > 0 {
            list.truncate(top_k);
        }
        mass = 0.0;
        let exceeds = |&(p, _): &(f32, usize)| {
            mass += p;
            mass > topp
        };
        let kept = list.iter().position(exceeds).map_or(list.len(), |last| last + 1);
        list.truncate(kept);
    }
    let mut cdf = 0.0;
    for &(p, i) in &list {
        cdf += p;
        if coin * mass < cdf {
            return i as u32;
        }
    }
    list.last().map_or(weights.iter().position(|&weight| weight == 1.0).unwrap(), |&(_, i)| i) as u32
}

/// What the sampler picks with this coin.
fn pick(logits: &[f32], sampler: &Sampler, coin: f32) -> u32 {
    let mut weights = logits.to_vec();
    let sum = exponentials(&mut weights, sampler.temperature, max(logits) / sampler.temperature);
    if sampler.needs_scratch() {
        sampler.sample_limited(&weights, sum, coin, &mut vec![ProbIndex::default(); logits.len()])
    } else {
        sample_all(&weights, sum, coin)
    }
}

/// Logits with many ties, from a small generator.
fn logits(n: usize, seed: u64) -> Vec<f32> {
    let mut sampler = Sampler::new(1.0, 0.9, seed).unwrap();
    (0..n).map(|_| (sampler.coin() * 12.0) as i32 as f32 * 0.7).collect()
}

fn limited(topp: f32, top_k: usize, min_p: f32) -> Sampler {
    let mut sampler = Sampler::new(1.0, topp, 1).unwrap();
    sampler.limit(top_k, min_p).unwrap();
    sampler
}

#[test]
fn limits_agree_with_a_full_sort() {
    for seed in 1..200 {
        let n = 1 + (seed as usize * 7) % 190;
        let mut logits = logits(n, seed);
        if seed % 3 == 0 {
            logits[..n / 2].fill(f32::NEG_INFINITY);
        }
        for topp in [0.0, 0.001, 0.3, 0.9, 0.9999, 1.0] {
            for (top_k, min_p) in [(0, 0.0), (1, 0.0), (7, 0.0), (1000, 0.0), (0, 0.05), (0, 1.0), (5, 0.05)] {
                let sampler = limited(topp, top_k, min_p);
                for coin in [0.0, 0.25, 0.5, 0.99999994] {
                    let (got, want) = (pick(&logits, &sampler, coin), naive(&logits, &sampler, coin));
                    assert_eq!(got, want, "{n} tokens, {sampler:?}, coin {coin}");
                    assert!(logits[got as usize] > f32::NEG_INFINITY, "a masked token, {sampler:?}, coin {coin}");
                }
            }
        }
    }
}

#[test]
fn exponentials_add_up_in_llama2cs_order() {
    // 32,000 small ones behind a large one: in eight lanes the sum would be 1 + 32,000 * e^-9.
    let mut logits = vec![-9.0f32; 32_000];
    logits[0] = 0.0;
    logits.iter_mut().step_by(3).skip(1).for_each(|x| *x = -8.123);
    let one_by_one = logits.iter().fold(0.0, |sum, x| sum + exp(*x));
    assert_ne!(one_by_one, crate::math::dot(&logits.iter().map(|x| exp(*x)).collect::<Vec<_>>(), &[1.0; 32_000]));
    assert_eq!(exponentials(&mut logits.clone(), 1.0, 0.0), one_by_one);
    for topp in [0.9, 1.0] {
        for coin in (0..40).map(|i| i as f32 / 40.0) {
            let sampler = limited(topp, 0, 0.0);
            assert_eq!(pick(&logits, &sampler, coin), naive(&logits, &sampler, coin), "p {topp}, coin {coin}");
        }
    }
}

#[test]
fn masked_tokens_are_never_picked() {
    const MASK: f32 = f32::NEG_INFINITY;
    for (t, p) in [(0.0, 0.9), (1.0, 0.9), (1.0, 1.0), (100.0, 0.999), (1e-45, 0.9)] {
        let mut sampler = Sampler::new(t, p, 7).unwrap();
        for _ in 0..100 {
            let mut logits = [MASK, 1.0, MASK, -200.0, 0.5, MASK];
            let token = sampler.sample(&mut logits, &mut [ProbIndex::default(); 6]).unwrap();
            assert!([1, 3, 4].contains(&token), "t {t}, p {p}: token {token}");
        }
        let only = sampler.sample(&mut [MASK, MASK, -1e30, MASK], &mut [ProbIndex::default(); 4]);
        assert_eq!(only, Ok(2), "t {t}, p {p}");
        for bad in [f32::NAN, f32::INFINITY] {
            let e = sampler.sample(&mut [MASK, 0.0, bad], &mut [ProbIndex::default(); 3]);
            assert_eq!(e, Err(Error::NotFinite { token: 2 }), "t {t}, p {p}");
        }
        for none in [&mut [MASK; 3][..], &mut []] {
            assert_eq!(sampler.sample(none, &mut [ProbIndex::default(); 3]), Err(Error::AllMasked), "t {t}, p {p}");
        }
    }
    // A cumulated probability that ends below the coin leaves the last token that is possible.
    assert_eq!(sample_all(&[1.0, 0.0], 1.000_001, 0.99999994), 0);
}

#[test]
fn limits_out_of_range_are_refused_and_change_nothing() {
    let mut sampler = limited(1.0, 3, 0.5);
    for min_p in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
        let e = sampler.limit(1, min_p);
        assert!(matches!(e, Err(Error::Setting { name: "min-p", .. })), "{e:?}");
    }
    assert_eq!((sampler.top_k, sampler.min_p), (3, 0.5));
    let e = sampler.sample(&mut [1.0, 2.0], &mut [ProbIndex::default()]);
    assert_eq!(e, Err(Error::BufferTooSmall { buffer: "sampler scratch", need: 2, have: 1 }));
    assert!(!limited(1.0, 0, 0.0).needs_scratch());
}

#[test]
fn penalty_of_recent_tokens() {
    const MASK: f32 = f32::NEG_INFINITY;
    let logits = [2.0, -2.0, 0.0, 3.0, MASK];
    let penalized = |recent: &[u32], penalty| {
        let mut x = logits;
        penalize(&mut x, recent, penalty).map(|()| x)
    };
    assert_eq!(penalized(&[1, 0, 1, 0, 2, 0, 4], 2.0), Ok([1.0, -4.0, 0.0, 3.0, MASK]));
    assert_eq!(penalized(&[0, 1, 2, 3], 1.0), Ok(logits));
    assert_eq!(penalized(&[], 5.0), Ok(logits));
    assert_eq!(penalized(&[3], 1e-45), Ok([2.0, -2.0, 0.0, f32::MAX, MASK]));
    assert_eq!(penalized(&[0, 5], 2.0), Err(Error::Token { token: 5, vocab_size: 5 }));
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let e = penalized(&[0], bad);
        assert!(matches!(e, Err(Error::Setting { name: "repetition penalty", .. })), "{e:?}");
    }
}

#[test]
fn flat_distribution_keeps_a_token() {
    // Every probability is below the cutoff by rounding, or the only one: llama2.c reads index -1
    // here.
    for n in [1, 2, 3, 1000, 32000] {
        let mut logits = vec![0.0; n];
        let token = Sampler::new(1.0, 1e-7, 1).unwrap().sample(&mut logits, &mut vec![ProbIndex::default(); n]);
        assert!((token.unwrap() as usize) < n);
    }
}

#[test]
fn temperature_zero_draws_nothing() {
    let mut sampler = Sampler::new(0.0, 0.9, 5).unwrap();
    assert!(!sampler.needs_scratch());
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0], &mut []), Ok(1));
    sampler.skip();
    assert_eq!(sampler.rng, 5);
}

#[test]
fn temperatures_near_zero_take_the_likeliest() {
    for temperature in [f32::MIN_POSITIVE, 1e-45, 1e-30] {
        for logits in [[1.0, 30.0, -5.0], [-30.0, -1.0, -7.0]] {
            let mut sampler = Sampler::new(temperature, 0.9, 5).unwrap();
            assert_eq!(sampler.sample(&mut logits.clone(), &mut [ProbIndex::default(); 3]), Ok(1), "{temperature:e}");
        }
    }
}

#[test]
fn skip_keeps_step_with_sample() {
    for topp in [0.0, 0.9, 1.0] {
        let (mut a, mut b) = (Sampler::new(0.7, topp, 5).unwrap(), Sampler::new(0.7, topp, 5).unwrap());
        a.sample(&mut [1.0, 2.0], &mut [ProbIndex::default(); 2]).unwrap();
        b.skip();
        assert_eq!(a.rng, b.rng);
    }
}

#[test]
fn frequencies_follow_the_distribution() {
    let mut sampler = Sampler::new(1.0, 1.0, 42).unwrap();
    let mut counts = [0; 3];
    for _ in 0..30_000 {
        let mut logits = [0.5f32, 0.3, 0.2].map(libm::logf);
        counts[sampler.sample(&mut logits, &mut []).unwrap() as usize] += 1;
    }
    // Standard deviation is below 90.
    for (count, want) in counts.into_iter().zip([15_000i32, 9_000, 6_000]) {
        assert!((count - want).abs() < 400, "{counts:?}");
    }
}
