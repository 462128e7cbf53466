//! The update of all weights on a GPU: the norm of their gradients, and AdamW.

use super::gpu::{Arg, Gpu};
use super::kernels::THREADS;
use super::layout::Parameters;
use crate::model::rates::Rates;

/// Most sums that squares are added in.
const MOST_SUMS: usize = 1 << 14;

/// Words that [`sum_of_squares`] of so many numbers takes.
pub fn sums(numbers: usize) -> usize {
    numbers.div_ceil(16 * THREADS).min(MOST_SUMS)
}

/// Computes the sum of the squares of so many numbers in f32, given memory for its [`sums`].
pub fn sum_of_squares<G: Gpu>(gpu: &G, x: u64, numbers: usize, memory: u64) -> Result<f64, G::Error> {
    let mut parts = vec![0.0; sums(numbers)];
    let args = [memory, x, numbers as u64].map(Arg::Address);
    gpu.launch("sum_of_squares", [parts.len(), 1, 1], &args)?;
    gpu.download(memory, &mut parts)?;
    Ok(parts.into_iter().map(f64::from).sum())
}

/// Makes the copies of all matrices. Every later [`adamw`] makes them anew.
pub fn copy<G: Gpu>(gpu: &G, weights: &Parameters) -> Result<(), G::Error> {
    let Parameters { all, copies, norms, matrices, .. } = *weights;
    let args = [copies, all + 4 * norms as u64, matrices as u64].map(Arg::Address);
    gpu.launch("cast", [matrices.div_ceil(THREADS), 1, 1], &args)
}

/// Updates all weights, their copies, and the moments, given gradients that are counted in
/// multiples of `unit`. Moments and gradients are arrays as the weights are.
pub fn adamw<G: Gpu>(
    gpu: &G,
    weights: &Parameters,
    [m, v]: [u64; 2],
    (gradients, unit): (u64, f32),
    rates: &Rates,
) -> Result<(), G::Error> {
    let Parameters { all, copies, norms, matrices, .. } = *weights;
    let mut args = [all, m, v, gradients, copies, norms as u64, matrices as u64].map(Arg::Address).to_vec();
    args.extend([Arg::Rates(*rates), Arg::F32(unit)]);
    gpu.launch("adamw", [weights.numbers().div_ceil(THREADS), 1, 1], &args)
}
