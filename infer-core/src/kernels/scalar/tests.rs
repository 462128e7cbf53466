use super::*;

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
