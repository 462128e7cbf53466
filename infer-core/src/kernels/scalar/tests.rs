use super::*;

#[test]
fn groups_round_half_to_even() {
    let mut q = [9; 8];
    let mut s = [9.0; 2];
    quantize(&[127.0, 0.5, 1.5, -2.5, -254.0, 1.0, 3.0, 254.0], 4, &mut q, &mut s);
    assert_eq!(q, [127, 0, 2, -2, -127, 0, 2, 127]);
    assert_eq!(s, [1.0, 2.0]);
}

#[test]
fn nothing_is_lost_or_made_up() {
    let (mut q, mut s) = ([9; 4], [9.0; 1]);
    quantize(&[0.0, -0.0, 1e-38, -1e-40], 4, &mut q, &mut s);
    assert_eq!((q, s), ([0; 4], [0.0]));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        quantize(&[1.0, bad, 2.0, 0.0], 4, &mut q, &mut s);
        assert!(!s[0].is_finite(), "{bad} gave scale {}", s[0]);
    }
}
