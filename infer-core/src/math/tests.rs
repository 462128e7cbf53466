use std::vec::Vec;

use super::*;

#[test]
fn exp_keeps_its_error_bound() {
    // Every 1,001st float of the whole range, negative and positive: 2 million arguments.
    for limit in [87.33f32, 88.37] {
        let sign = if limit < 88.0 { -1.0 } else { 1.0 };
        for bits in (0..limit.to_bits()).step_by(1001) {
            let x = sign * f32::from_bits(bits);
            let want = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - want) / want).abs();
            assert!(error < (2.0 + f64::from(x.abs())) * 1e-7, "exp({x}): relative error {error:e}");
        }
    }
}

#[test]
fn exp2_keeps_its_error_bound() {
    let mut worst = 0.0f64;
    for bits in (0..126f32.to_bits()).step_by(1001) {
        for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
            let want = f64::from(x).exp2();
            worst = worst.max(((f64::from(exp2(x)) - want) / want).abs());
        }
    }
    assert!(worst < 2e-7, "relative error {worst:e}");
}

#[test]
fn exp2_score_at_its_edges() {
    assert_eq!((exp2_score(0.0), exp2_score(-60.0)), (1.0, 1.0 / (1u64 << 60) as f32));
    for x in [-60.01, -1e9, f32::MIN, f32::NEG_INFINITY] {
        assert_eq!(exp2_score(x), 0.0, "{x}");
    }
    // Damage may make any NaN.
    for bits in [0x7fc0_0000, 0x7fc0_0001, 0x7fff_ffff, 0xffc0_0123] {
        assert!(exp2_score(f32::from_bits(bits)).is_nan(), "{bits:x}");
        assert!(exp(f32::from_bits(bits)).is_nan(), "{bits:x}");
    }
}

#[test]
fn exp_at_its_edges() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(f32::MAX), f32::INFINITY);
    assert_eq!(exp(f32::MIN), 0.0);
    assert_eq!(exp(-87.34), 0.0);
    assert!(exp(-87.33).is_normal());
    assert!(exp(88.37).is_finite());
    assert_eq!(exp(88.38), f32::INFINITY);
}

#[test]
fn dot_adds_in_the_order_of_the_contract() {
    // Numbers for which every other order gives another result.
    for n in 0..40 {
        let a: Vec<f32> = (0..n).map(|i| 1.0 + (i * i) as f32 * 0.37).collect();
        let b: Vec<f32> = (0..n).map(|i| if i % 3 == 0 { -1.1 } else { 0.7 } / (1 + i) as f32).collect();
        let lane = |k: usize| (k..n).step_by(8).fold(0.0f32, |sum, i| sum + a[i] * b[i]);
        let pair = |k: usize| lane(k) + lane(k + 4);
        let want = (pair(0) + pair(2)) + (pair(1) + pair(3));
        assert_eq!(dot(&a, &b).to_bits(), want.to_bits(), "{n} elements");
        let ones: Vec<f32> = a.iter().map(|_| 1.0).collect();
        assert_eq!(dot(&a, &ones).to_bits(), sum(&a).to_bits());
    }
}

#[test]
fn silu_of_large_numbers() {
    for (v, want) in [(1000.0, 1000.0), (-1000.0, 0.0), (0.0, 0.0), (-88.5, 0.0)] {
        let mut hb = [v];
        swiglu(&mut hb, &[1.0]);
        assert!((hb[0] - want).abs() < 1e-30, "silu({v}) = {}", hb[0]);
    }
    let mut hb = [f32::NAN];
    swiglu(&mut hb, &[0.0]);
    assert!(hb[0].is_nan());
}

#[test]
fn rmsnorm_hides_no_damage() {
    let mut out = [0.0; 4];
    for bad in [f32::NAN, f32::INFINITY, 1e30, -1e38] {
        rmsnorm(&mut out, &[1.0, bad, 2.0, 3.0], &[1.0; 4], 1e-5);
        assert!(out.iter().all(|x| x.is_nan()), "{bad} became {out:?}");
    }
    rmsnorm(&mut out, &[0.0; 4], &[1.0; 4], 1e-5);
    assert_eq!(out, [0.0; 4]);
}

#[test]
fn hash_is_fnv1a() {
    // FNV-1a 64 of "foobar" in the authors' test vectors, as the bits of an f32 and two bytes less.
    let foob = f32::from_le_bytes(*b"foob");
    let tail = b"ar".iter().fold(hash_logits(HASH_START, &[foob]), |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    assert_eq!(tail, 0x8594_4171_f739_67e8);
}

#[test]
fn rope_turns_pairs() {
    let angle = core::f32::consts::FRAC_PI_2;
    let mut heads = [1.0, 0.0, 3.0, 4.0, 0.0, 2.0, 5.0, 6.0]; // two heads of two pairs
    rope(&mut heads, &[libm::cosf(angle), libm::sinf(angle), 1.0, 0.0]);
    let want = [0.0, 1.0, 3.0, 4.0, -2.0, 0.0, 5.0, 6.0];
    assert!(heads.iter().zip(want).all(|(x, want)| (x - want).abs() < 1e-6), "{heads:?}");
}

#[test]
fn sin_cos_keep_their_error_bounds() {
    for bits in (0..1e5f32.to_bits()).step_by(997) {
        let x = f32::from_bits(bits);
        let (sin, cos) = sin_cos(x);
        let (want_sin, want_cos) = f64::from(x).sin_cos();
        let error = (f64::from(sin) - want_sin).abs().max((f64::from(cos) - want_cos).abs());
        assert!(error < if x < 1e4 { 2e-7 } else { 1e-5 }, "sin_cos({x}): error {error:e}");
    }
    assert_eq!(sin_cos(0.0), (0.0, 1.0));
}
