//! Passes over memory, in which each task works on a chunk. Every sum has an order that does not
//! depend on the number of threads.

use rayon::prelude::*;

use super::math;
use crate::model::rates::Rates;

/// Numbers of a chunk.
const CHUNK: usize = 1 << 14;

/// Σ x²
pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    let sums: Vec<f64> = x.par_chunks(CHUNK).map(|x| f64::from(math::vectorized(|| math::sum_of_squares(x)))).collect();
    sums.iter().sum()
}

/// sum = Σ part(task), in the order of the tasks.
pub(super) fn sum_parts<T: Sync>(sum: &mut [f32], tasks: &[T], part: impl Fn(&T) -> &[f32] + Sync) {
    sum.par_chunks_mut(CHUNK).enumerate().for_each(|(i, sum)| {
        sum.fill(0.0);
        for task in tasks {
            sum.iter_mut().zip(&part(task)[i * CHUNK..]).for_each(|(sum, x)| *sum += x);
        }
    });
}

/// sum += factor · x
pub(super) fn add_scaled(sum: &mut [f32], factor: f32, x: &[f32]) {
    sum.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(sum, x)| {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x);
    });
}

/// x *= factor
pub(super) fn scale(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

/// AdamW's update of a parameter's values.
pub(super) fn adam(rates: &Rates, values: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
    let chunks =
        (values.par_chunks_mut(CHUNK), m.par_chunks_mut(CHUNK), v.par_chunks_mut(CHUNK), gradient.par_chunks(CHUNK));
    chunks.into_par_iter().for_each(|(values, m, v, gradient)| math::adam(rates, values, m, v, gradient));
}
