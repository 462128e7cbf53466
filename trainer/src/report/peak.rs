//! Measures the peak of the processor, which the utilisation (mfu) relates to.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use gemm::Parallelism;

/// GFLOP/s of all threads together. Each thread multiplies f32 matrices of its own, as in training.
pub fn measure() -> f64 {
    const N: usize = 512;
    const ROUNDS: usize = 4;
    let products = |_: rayon::BroadcastContext<'_>| {
        let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0f32; N * N]);
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let (n, c, a, b) = (N as isize, c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
            // SAFETY: gemm reads and writes elements i * row stride + j * column stride for i, j <
            // N. The strides are N and 1, and all three vectors have N * N elements.
            unsafe {
                gemm::gemm(N, N, N, c, 1, n, false, a, 1, n, b, 1, n, 0.0, 1.0, false, false, false, Parallelism::None);
            }
            best = best.min(start.elapsed());
        }
        2.0 * (N as f64).powi(3) / best.as_secs_f64() / 1e9
    };
    rayon::broadcast(products).into_iter().sum()
}
