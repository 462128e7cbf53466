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

#[cfg(feature = "std")]
#[test]
fn int8_products_at_their_limits() {
    use crate::kernels::Kernels;
    use crate::panel::SharedOut;

    // -128 is no product of the quantiser, and legal; two products of 127 · 128 stand in 16 bits at
    // most.
    for (group_size, w, x) in [(32, -128, 127), (32, -128, -127), (1024, -128, 127), (1024, 127, 127), (64, 127, -127)]
    {
        let (rows, cols) = (9, 2048);
        let (q, s) = (std::vec![w; rows * cols], std::vec![0.5; rows * cols / group_size]);
        let (x, xs) = (std::vec![x; cols], std::vec![0.25; cols / group_size]);
        let w = Q8Matrix { q: &q, s: &s, rows, cols, group_size };
        let want = (i64::from(q[0]) * i64::from(x[0]) * cols as i64) as f32 * 0.125;
        for kernels in Kernels::all() {
            let mut out = std::vec![0.0; rows];
            #[allow(unsafe_code)]
            // SAFETY: the only panel.
            let mut panel = unsafe { SharedOut::new(&mut out, rows).columns(0..rows) };
            (kernels.matmul_q8)(&w, &x, &xs, &mut panel);
            assert_eq!(out, std::vec![want; rows], "{}: group size {group_size}", kernels.name);
        }
    }
}
