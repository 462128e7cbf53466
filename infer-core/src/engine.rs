//! What computes a pass: kernels, and the runner of their tasks.

use crate::kernels::Kernels;
use crate::runner::{Runner, Serial};

/// The kernels that compute a pass, and the runner of their tasks.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Engine<'r> {
    /// Inner loops for an instruction set.
    pub kernels: Kernels,
    /// Runs tasks, on one thread or several.
    pub runner: &'r dyn Runner,
}

impl<'r> Engine<'r> {
    /// These kernels, with tasks that `runner` runs.
    pub const fn new(kernels: Kernels, runner: &'r dyn Runner) -> Engine<'r> {
        Engine { kernels, runner }
    }

    /// The number of tasks for a piece of work of `work` multiplications.
    pub(crate) fn tasks(&self, work: usize) -> usize {
        let enough = work.checked_div(self.runner.min_work()).unwrap_or(work);
        self.runner.threads().get().min(enough).max(1)
    }
}

impl Engine<'static> {
    /// The portable kernels on the calling thread.
    pub const fn scalar() -> Engine<'static> {
        Engine::new(Kernels::scalar(), &Serial)
    }

    /// The best kernels known at compile time on the calling thread.
    pub const fn native() -> Engine<'static> {
        Engine::new(Kernels::native(), &Serial)
    }
}
