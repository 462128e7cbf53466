//! Threads for a forward pass: workers that spin while there is work every few microseconds, and
//! sleep when there is none.
//!
//! A token of a small model takes microseconds and needs dozens of rounds of tasks. Waking a thread
//! for each round, which takes about 10 µs, would cost more than the work. A thread may also have
//! no core to run on: therefore each thread that has done its own share of a round takes over the
//! shares that nobody has begun, and no thread spins for long.
#![allow(unsafe_code)]

use std::format;
use std::io::{Error, ErrorKind};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};
use std::vec::Vec;

use crate::config::Config;
use crate::runner::Runner;

/// The most threads of a [`Pool`].
pub const MAX_THREADS: usize = 1024;
/// Time that a thread waits before it sleeps: longer than any pause between two rounds of a token.
const PATIENCE: Duration = Duration::from_micros(500);
/// Looks of a waiting thread before it lets others run: a few microseconds.
const SPINS: u32 = 100;
/// Low bits of [`Shared::round`]: the number of shares. The other bits count rounds, and would take
/// years to overflow.
const SHARE_BITS: u32 = 16;
const _: () = assert!(MAX_THREADS < 1 << SHARE_BITS);

/// Multiplications that are worth a thread of their own: about 50 µs, in which threads meet dozens
/// of times.
const WORK_PER_THREAD: usize = 1 << 20;

/// A fixed number of threads, the calling one included.
///
/// A general thread pool does not replace it: a [`Runner`] on rayon was measured 13 times slower
/// than no threads at all. A token of a small model is dozens of rounds of tasks, of microseconds
/// each, and waking a thread for a round takes longer than the round. The workers of this pool spin
/// between rounds, and sleep after half a millisecond without one.
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

struct Shared {
    /// The current round and the number of its shares; a change is the signal to start.
    round: Padded<AtomicU64>,
    /// Shares of the round that are done.
    done: Padded<AtomicUsize>,
    /// The round's tasks, on the caller's stack until all shares are done. Null ends the workers.
    job: AtomicPtr<Job<'static>>,
    /// Whether the caller sleeps, or is about to, until all shares are done.
    caller_asleep: AtomicBool,
    caller: (Mutex<()>, Condvar),
    /// One for each thread, the caller first.
    threads: Vec<Padded<Slot>>,
}

#[derive(Default)]
struct Slot {
    /// The last round in which somebody began this thread's share.
    begun: AtomicU64,
    /// Whether this worker sleeps, or is about to.
    asleep: AtomicBool,
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
    ///
    /// # Errors
    /// The system starts no more threads, or these are more than [`MAX_THREADS`].
    pub fn new(threads: NonZeroUsize) -> std::io::Result<Pool> {
        if threads.get() > MAX_THREADS {
            let problem = format!("{threads} threads: a pool has at most {MAX_THREADS}");
            return Err(Error::new(ErrorKind::InvalidInput, problem));
        }
        let mut pool = Pool::without_workers(threads.get());
        for i in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new().name(format!("infer-{i}")).spawn(move || work(&shared, i))?;
            pool.workers.push(Worker { thread: handle.thread().clone(), handle: Some(handle) });
        }
        Ok(pool)
    }

    /// The number of threads, the calling one included.
    pub fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.shared.threads.len()).unwrap_or(NonZeroUsize::MIN)
    }

    fn without_workers(threads: usize) -> Pool {
        let shared = Shared {
            round: Padded::default(),
            done: Padded::default(),
            job: AtomicPtr::default(),
            caller_asleep: AtomicBool::new(false),
            caller: Default::default(),
            threads: (0..threads).map(|_| Padded::default()).collect(),
        };
        Pool { shared: Arc::new(shared), busy: Mutex::new(()), workers: Vec::new() }
    }

    /// Starts a round with this job, or the end of the workers with a null one, and wakes the
    /// workers that have a share.
    fn signal(&self, job: *mut Job<'static>, shares: usize) -> u64 {
        self.shared.done.0.store(0, Ordering::Relaxed);
        self.shared.job.store(job, Ordering::Relaxed);
        let count = (self.shared.round.0.load(Ordering::Relaxed) >> SHARE_BITS) + 1;
        let round = (count << SHARE_BITS) | shares as u64;
        // SeqCst: a worker either sees the new round before it sleeps, or is seen asleep here.
        self.shared.round.0.store(round, Ordering::SeqCst);
        for (worker, slot) in self.workers.iter().zip(&self.shared.threads[1..]).take(shares.saturating_sub(1)) {
            if slot.0.asleep.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        round
    }
}

// SAFETY: each index must run exactly once, and all must have finished on return. Share t of a
// round is the indices t, t + shares, …, so each index is in one share; `Shared::begin` gives each
// share to one thread; `run` returns when all shares are done.
unsafe impl Runner for Pool {
    fn threads(&self) -> NonZeroUsize {
        Pool::threads(self)
    }

    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let shares = n.min(self.shared.threads.len());
        // A call from another thread, or from within a task, does its own work.
        let alone = self.busy.try_lock();
        if shares <= 1 || alone.is_err() {
            return (0..n).for_each(task);
        }
        // If a task panicked, unwinding would free memory that the workers still use.
        let abort = AbortOnPanic;
        let mut job = Job { n, task };
        let job = (&raw mut job).cast();
        let round = self.signal(job, shares);
        self.shared.take_part(job, round, 0);
        self.shared.wait_until_done(shares);
        std::mem::forget(abort);
    }
}

impl Shared {
    /// Does the thread's own share of a round, then those that nobody has begun.
    fn take_part(&self, job: *const Job<'static>, round: u64, thread: usize) {
        let shares = shares_of(round);
        for share in (thread..shares).chain(0..thread) {
            if self.begin(share, round) {
                // SAFETY: `job` must point to a job that lives until this share is done. `run` made
                // it and returns, or stores the next one, only when all shares of the round are
                // done, and `begin` has just given this share of this round to this thread alone.
                let job = unsafe { &*job };
                (share..job.n).step_by(shares).for_each(job.task);
                // SeqCst: either this thread sees the caller asleep, or the caller sees the count
                // before it sleeps.
                let done = self.done.0.fetch_add(1, Ordering::SeqCst) + 1;
                if done == shares && self.caller_asleep.load(Ordering::SeqCst) {
                    drop(self.caller.0.lock());
                    self.caller.1.notify_one();
                }
            }
        }
    }

    /// Whether the share is this thread's now: true for one thread in each round.
    fn begin(&self, share: usize, round: u64) -> bool {
        let begun = &self.threads[share].0.begun;
        // Loading is cheaper where the share has been begun, as most have.
        begun.load(Ordering::Relaxed) < round && begun.fetch_max(round, Ordering::AcqRel) < round
    }

    fn wait_until_done(&self, shares: usize) {
        let mut patience = Patience::new();
        while self.done.0.load(Ordering::Acquire) < shares {
            if !patience.wait() {
                let mut guard = self.caller.0.lock().unwrap_or_else(PoisonError::into_inner);
                self.caller_asleep.store(true, Ordering::SeqCst);
                while self.done.0.load(Ordering::SeqCst) < shares {
                    guard = self.caller.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.caller_asleep.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Waits until the round differs from `seen`, and returns it.
    fn wait_for_round(&self, thread: usize, seen: u64) -> u64 {
        let mut patience = Patience::new();
        loop {
            let round = self.round.0.load(Ordering::Acquire);
            if round != seen {
                return round;
            }
            if !patience.wait() {
                let asleep = &self.threads[thread].0.asleep;
                asleep.store(true, Ordering::SeqCst);
                while self.round.0.load(Ordering::SeqCst) == seen {
                    thread::park();
                }
                asleep.store(false, Ordering::Relaxed);
            }
        }
    }
}

fn shares_of(round: u64) -> usize {
    (round & ((1 << SHARE_BITS) - 1)) as usize
}

fn work(shared: &Shared, thread: usize) {
    let abort = AbortOnPanic;
    let mut round = 0;
    loop {
        round = shared.wait_for_round(thread, round);
        let job = shared.job.load(Ordering::Relaxed);
        if job.is_null() {
            break;
        }
        // Without a share of its own a thread stays away: the round may be over, and its job gone.
        if thread < shares_of(round) {
            shared.take_part(job, round, thread);
        }
    }
    std::mem::forget(abort);
}

/// Waits in steps: spins a few microseconds, then lets other threads run, as the thread that it
/// waits for may need this one's core, and says when it is time to sleep.
struct Patience {
    spins: u32,
    since: Option<Instant>,
}

impl Patience {
    fn new() -> Patience {
        Patience { spins: 0, since: None }
    }

    /// Waits a little. False when it has been long enough.
    fn wait(&mut self) -> bool {
        self.spins = self.spins.wrapping_add(1);
        if self.spins < SPINS || !self.spins.is_multiple_of(8) {
            std::hint::spin_loop();
            return true;
        }
        thread::yield_now();
        self.since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
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
        self.signal(std::ptr::null_mut(), self.shared.threads.len());
        for worker in &mut self.workers {
            if let Some(handle) = worker.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

/// Physical cores that this process may use: a second thread on a core adds nothing to kernels that
/// are bound by memory.
pub fn default_threads() -> NonZeroUsize {
    let logical = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let physical = NonZeroUsize::new(num_cpus::get_physical()).unwrap_or(logical);
    NonZeroUsize::new(logical.min(physical).get().min(MAX_THREADS)).unwrap_or(NonZeroUsize::MIN)
}

/// [`default_threads`], or fewer for a small model, which is slower with a second thread. `batch`
/// is the number of tokens that are mostly read at a time: 1 for a program that generates text.
pub fn threads_for(config: &Config, batch: usize) -> NonZeroUsize {
    let enough = batch.saturating_mul(multiplications(config)) / WORK_PER_THREAD;
    default_threads().min(NonZeroUsize::new(enough).unwrap_or(NonZeroUsize::MIN))
}

/// Multiplications of weights for one token.
fn multiplications(config: &Config) -> usize {
    let Config { dim, hidden_dim, n_layers, vocab_size, .. } = *config;
    let layer = [2 * dim, 2 * config.kv_dim(), 3 * hidden_dim].iter().fold(0, |sum: usize, n| sum.saturating_add(*n));
    n_layers.saturating_mul(layer).saturating_add(vocab_size).saturating_mul(dim)
}

#[cfg(test)]
mod tests;
