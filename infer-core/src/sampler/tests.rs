use std::vec;
use std::vec::Vec;

use super::*;

/// Nucleus sampling as llama2.c writes it, with a full sort.
fn naive_topp(probs: &[f32], topp: f32, coin: f32) -> u32 {
    let cutoff = (1.0 - topp) / (probs.len() as f32 - 1.0);
    let mut list: Vec<(f32, u32)> =
        probs.iter().enumerate().filter(|(_, p)| **p >= cutoff).map(|(i, &p)| (p, i as u32)).collect();
    list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut mass = 0.0;
    let mut kept = list.len();
    for (i, (p, _)) in list.iter().enumerate() {
        mass += p;
        if mass > topp {
            kept = i + 1;
            break;
        }
    }
    let mut cdf = 0.0;
    for (p, i) in &list[..kept] {
        cdf += p;
        if coin * mass < cdf {
            return *i;
        }
    }
    if kept == 0 { argmax(probs) } else { list[kept - 1].1 }
}

/// Logits with many ties, from a small generator.
fn logits(n: usize, seed: u64) -> Vec<f32> {
    let mut sampler = Sampler::new(1.0, 0.9, seed).unwrap();
    (0..n).map(|_| (sampler.coin() * 12.0) as i32 as f32 * 0.7).collect()
}

#[test]
fn nucleus_agrees_with_a_full_sort() {
    for seed in 1..200 {
        let n = 1 + (seed as usize * 7) % 90;
        let mut probs = logits(n, seed);
        softmax(&mut probs);
        for topp in [0.001, 0.3, 0.9, 0.9999] {
            for coin in [0.0, 0.25, 0.5, 0.99999994] {
                let got = sample_topp(&probs, topp, coin, &mut vec![ProbIndex::default(); n]);
                assert_eq!(got, naive_topp(&probs, topp, coin), "{n} tokens, p {topp}, coin {coin}");
            }
        }
    }
}

#[test]
fn flat_distribution_keeps_a_token() {
    // Every probability is below the cutoff by rounding, or the only one: llama2.c reads index -1 here.
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
