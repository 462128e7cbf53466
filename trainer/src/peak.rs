//! What the processor can do, for the utilisation.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use gemm::Parallelism;

/// GFLOP/s of the best of a few f32 matrix products on all threads.
pub fn measure() -> f64 {
    const N: usize = 768;
    let (a, b) = (vec![0.5f32; N * N], vec![0.25f32; N * N]);
    let mut c = vec![0f32; N * N];
    let mut best = Duration::MAX;
    for _ in 0..8 {
        let start = Instant::now();
        // SAFETY: all three matrices have N columns of N elements.
        unsafe {
            let (n, threads) = (N as isize, Parallelism::Rayon(0));
            let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
            gemm::gemm(N, N, N, c, n, 1, false, a, n, 1, b, n, 1, 0.0, 1.0, false, false, false, threads);
        }
        best = best.min(start.elapsed());
    }
    2.0 * (N as f64).powi(3) / best.as_secs_f64() / 1e9
}
