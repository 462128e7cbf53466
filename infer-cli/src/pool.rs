//! Threads for a forward pass: workers that spin while there is work every few microseconds, and sleep when there is none.
//!
//! A token of a small model takes microseconds and needs dozens of rounds of tasks, so waking a thread for each
//! (some 10 µs) would cost more than the work.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use infer_core::Runner;

/// How long a worker spins for the next round before it sleeps: longer than anything between two rounds of one token.
const SPIN: Duration = Duration::from_micros(500);

/// A fixed number of threads, the calling one included.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held during a round: there is one job at a time.
    busy: Mutex<()>,
    workers: Vec<Worker>,
}

struct Worker {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Number of the current round; a change is the signal to start.
    round: Padded<AtomicUsize>,
    /// Workers that have finished the round.
    done: Padded<AtomicUsize>,
    /// The round's tasks, on the caller's stack until `done` counts all workers. Null ends the workers.
    job: AtomicPtr<Job<'static>>,
    /// Whether worker i sleeps, or is about to.
    asleep: Vec<Padded<AtomicBool>>,
}

/// A cache line of its own, so that signals do not disturb each other.
#[derive(Default)]
#[repr(align(128))]
struct Padded<T>(T);

struct Job<'a> {
    n: usize,
    task: &'a (dyn Fn(usize) + Sync),
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub fn new(threads: NonZeroUsize) -> std::io::Result<Pool> {
        let n = threads.get() - 1;
        let asleep = (0..n).map(|_| Padded::default()).collect();
        let shared = Arc::new(Shared { asleep, ..Shared::default() });
        let mut pool = Pool { shared, busy: Mutex::new(()), workers: Vec::new() };
        for i in 0..n {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new().name(format!("infer-{i}")).spawn(move || work(&shared, i, n + 1))?;
            pool.workers.push(Worker { thread: handle.thread().clone(), handle: Some(handle) });
        }
        Ok(pool)
    }

    /// Starts a round with this job, or the end of the workers with a null one.
    fn signal(&self, job: *mut Job<'static>) {
        self.shared.done.0.store(0, Ordering::Relaxed);
        self.shared.job.store(job, Ordering::Relaxed);
        // SeqCst: a worker either sees the new round before it sleeps, or is seen asleep here.
        self.shared.round.0.fetch_add(1, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&self.shared.asleep) {
            if asleep.0.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
    }
}

// SAFETY: thread t calls the indices t, t + threads, …: each once. `run` waits until all workers have counted themselves
// done, which they do after their last call.
unsafe impl Runner for Pool {
    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(self.workers.len())
    }

    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        // A call from another thread, or from within a task, does its own work.
        let alone = self.busy.try_lock();
        if n <= 1 || self.workers.is_empty() || alone.is_err() {
            return (0..n).for_each(task);
        }
        // Were a task to panic, unwinding would free what the workers still use.
        let abort = AbortOnPanic;
        let mut job = Job { n, task };
        self.signal((&raw mut job).cast());
        run_share(&job, 0, self.workers.len() + 1);
        let mut spins = 0u32;
        while self.shared.done.0.load(Ordering::Acquire) < self.workers.len() {
            relax(&mut spins);
        }
        std::mem::forget(abort);
    }
}

/// The tasks of one thread.
fn run_share(job: &Job<'_>, thread: usize, threads: usize) {
    (thread..job.n).step_by(threads).for_each(job.task);
}

fn work(shared: &Shared, i: usize, threads: usize) {
    let abort = AbortOnPanic;
    let mut seen = 0;
    loop {
        seen = wait_for_round(shared, i, seen);
        let job = shared.job.load(Ordering::Relaxed);
        // SAFETY: the round counter published this pointer, and the caller keeps the job alive until this worker counts
        // itself done below. Null ends the pool.
        let Some(job) = (unsafe { job.as_ref() }) else { break };
        run_share(job, i + 1, threads);
        shared.done.0.fetch_add(1, Ordering::Release);
    }
    std::mem::forget(abort);
}

/// Waits until the round differs from `seen`, and returns it.
fn wait_for_round(shared: &Shared, i: usize, seen: usize) -> usize {
    let mut spins = 0;
    let mut since = None;
    loop {
        let round = shared.round.0.load(Ordering::Acquire);
        if round != seen {
            return round;
        }
        relax(&mut spins);
        if spins.is_multiple_of(1024) && since.get_or_insert_with(Instant::now).elapsed() > SPIN {
            let asleep = &shared.asleep[i].0;
            asleep.store(true, Ordering::SeqCst);
            while shared.round.0.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            asleep.store(false, Ordering::Relaxed);
        }
    }
}

/// Spins some microseconds, then lets others run: on a machine with fewer free cores than threads, the one that is waited
/// for may not be running.
fn relax(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if *spins > 100 && spins.is_multiple_of(8) {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.signal(std::ptr::null_mut());
        for worker in &mut self.workers {
            if let Some(handle) = worker.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

/// Physical cores that this process may use: a second thread on a core adds nothing to kernels that are bound by memory.
pub fn default_threads() -> NonZeroUsize {
    let logical = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let physical = NonZeroUsize::new(num_cpus::get_physical()).unwrap_or(logical);
    logical.min(physical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
            assert_eq!(pool.threads().get(), threads);
            for round in 0..2000 {
                let n = round % 20;
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads, {n} tasks");
            }
        }
    }

    #[test]
    fn logits_do_not_depend_on_the_pool() {
        use ::tests::Run;
        use ::tests::random::{RandomModel, config};
        use infer_core::format::Version;
        use infer_core::{Config, Engine, Kernels, WeightType};

        let f32_ = config(256, 512, 2, 4, 2);
        let int8 = Config { weights: WeightType::Q8 { group_size: 64 }, ..f32_ };
        for (version, config) in [(Version::V1, f32_), (Version::V2, int8)] {
            let file = RandomModel::new(config, 1).to_file(version);
            let tokens: Vec<u32> = (0..40).collect();
            let want = Run::new(file.bytes(), 1).logits(&tokens).unwrap();
            for threads in [1, 2, 3] {
                let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
                for (kernels, batch) in Kernels::all().flat_map(|kernels| [(kernels, 1), (kernels, 32)]) {
                    let engine = Engine { kernels, runner: &pool };
                    let got = Run::with_engine(file.bytes(), batch, threads, engine).logits(&tokens).unwrap();
                    assert_eq!(got, want, "{}, {threads} threads, batch {batch}", kernels.name);
                }
            }
        }
    }

    #[test]
    fn nested_and_concurrent_rounds_do_their_own_work() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap()).unwrap();
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(4, &|_| {
                            pool.run(5, &|i| {
                                sum.fetch_add(i, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 2 * 200 * 4 * 10);
    }

    #[test]
    fn workers_wake_after_sleep() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap()).unwrap();
        for _ in 0..5 {
            thread::sleep(SPIN * 4);
            let sum = AtomicUsize::new(0);
            pool.run(9, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 36);
        }
    }
}
