//! Runners share the tasks of a forward pass out among threads: the caller's own, or a pool.
#![allow(unsafe_code)]

use core::num::NonZeroUsize;

/// Runs independent tasks. Results do not depend on how many threads share the work.
///
/// Take `Pool` (under `std`) before writing one: a runner on rayon was measured 13 times
/// slower than [`Serial`], as to wake a thread takes longer than most rounds of tasks last.
///
/// # Safety
/// `run` must call `task` exactly once for each index in `0..n`, and with no other index. It must
/// return, or unwind, only after all calls have finished: tasks write to slices that are disjoint
/// by index and borrowed from the caller.
pub unsafe trait Runner: Sync {
    /// The largest number of tasks worth splitting work into.
    fn threads(&self) -> NonZeroUsize;

    /// The smallest number of multiplications worth a task of their own. Handing fewer to another
    /// thread takes longer than doing them. The default takes a few microseconds.
    fn min_work(&self) -> usize {
        1 << 15
    }

    /// Calls `task(0)` … `task(n - 1)`, in any order and on any thread.
    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync));
}

/// Runs everything on the calling thread, one task after another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

// SAFETY: a plain loop calls each index once and no other, and leaves after the last call.
unsafe impl Runner for Serial {
    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(task);
    }
}
