//! Allocates memory, with an error where there is not enough.

use std::vec;
use std::vec::Vec;

use crate::error::Error;

/// `n` times `value`, or an error where `vec!` alone would end the process.
pub(crate) fn vec_of<T: Clone>(buffer: &'static str, value: T, n: usize) -> Result<Vec<T>, Error> {
    let mut probe = Vec::<T>::new();
    probe.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { buffer, bytes: n as u64 * size_of::<T>() as u64 })?;
    // Without this the optimiser may drop the probe, as nothing is stored in it.
    drop(std::hint::black_box(probe));
    // vec! gets zeros as pages that the system fills when they are first touched.
    Ok(vec![value; n])
}
