//! A group of processes that mpirun has started, over MPI.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::request::{Request, Scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use super::link::Link;
use crate::report::output::error_line;

/// The tag of the messages that say "I am alive".
const BEAT: i32 = 1;
/// Time between two of them.
const INTERVAL: Duration = Duration::from_millis(500);
/// Time without one after which a rank counts as stopped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for which a rank that waits looks for the others without a pause.
const SPIN: Duration = Duration::from_millis(2);
/// The pause after that. The processor is then free for the ranks that are waited for.
const PAUSE: Duration = Duration::from_micros(100);

/// All ranks of a job.
pub struct World {
    world: SimpleCommunicator,
    /// Runs until the ranks part.
    watch: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    /// MPI ends when this is dropped.
    _universe: Universe,
}

impl World {
    /// Waits for all ranks, and begins to watch them.
    ///
    /// # Errors
    /// MPI does not start, or allows calls from one thread only.
    pub fn join() -> anyhow::Result<World> {
        let (universe, threading) =
            mpi::initialize_with_threading(Threading::Multiple).context("MPI has been started before")?;
        ensure!(
            threading == Threading::Multiple,
            "this MPI library was built without threads (MPI_THREAD_MULTIPLE), and a thread watches over the ranks"
        );
        let mut world = World { world: universe.world(), watch: None, _universe: universe };
        let hosts = world.hosts()?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("watch".into()).spawn({
            let stop = stop.clone();
            move || watch(&hosts, &stop)
        })?;
        world.watch = Some((stop, thread));
        Ok(world)
    }

    /// The name of each rank's machine.
    fn hosts(&self) -> anyhow::Result<Vec<String>> {
        let name = mpi::environment::processor_name().context("the name of this machine")?;
        let mut mine = [0; 64];
        let n = name.len().min(mine.len());
        mine[..n].copy_from_slice(&name.as_bytes()[..n]);
        let mut all = vec![0; mine.len() * self.size()];
        self.world.all_gather_into(&mine[..], &mut all[..]);
        let names = all.chunks_exact(mine.len()).map(|name| String::from_utf8_lossy(name));
        Ok(names.map(|name| name.trim_end_matches('\0').to_string()).collect())
    }
}

impl Link for World {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &mut [f32]) {
        let mine = values.to_vec();
        self.world.all_reduce_into(&mine[..], values, SystemOperation::sum());
    }

    fn gather(&self, values: &[f64]) -> Vec<f64> {
        let mut all = vec![0.0; values.len() * self.size()];
        mpi::request::scope(|scope| wait(self.world.immediate_all_gather_into(scope, values, &mut all[..])));
        all
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let n = self.gather(&[bytes.len() as f64])[0];
        bytes.resize(n as usize, 0);
        self.world.process_at_rank(0).broadcast_into(&mut bytes[..]);
        bytes
    }

    fn abort(&self, status: u8) -> ! {
        self.world.abort(status.into())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            self.abort(101); // MPI would wait for the other ranks
        }
        if let Some((stop, thread)) = self.watch.take() {
            stop.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            let _ = thread.join(); // a watch that panicked watches no more
        }
    }
}

/// Waits until all ranks take part. Rank 0 may be writing a checkpoint meanwhile: so there is no
/// deadline here, and [`watch`] finds ranks that have stopped.
fn wait<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    let start = Instant::now();
    while let Err(again) = request.test() {
        request = again;
        if start.elapsed() < SPIN { thread::yield_now() } else { thread::sleep(PAUSE) }
    }
}

/// Tells the others that this process runs, and ends the job when one of them is silent for long. A
/// thread does so, however long the steps of the training take.
///
/// Rank 0 and each other rank listen to each other.
fn watch(hosts: &[String], stop: &AtomicBool) {
    let world = SimpleCommunicator::world();
    let (me, size) = (world.rank() as usize, world.size() as usize);
    let others = if me == 0 { 1..size } else { 0..1 };
    // Rank 1 is the first to miss rank 0, so that one message says it.
    let patience = if me < 2 { PATIENCE } else { PATIENCE + Duration::from_secs(2) };
    let mut heard = vec![Instant::now(); size];
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if last.elapsed() > 4 * INTERVAL {
            heard.fill(Instant::now()); // this process was stopped itself, maybe with the whole job
        }
        last = Instant::now();
        for other in others.clone() {
            world.process_at_rank(other as i32).send_with_tag(&0u8, BEAT);
        }
        while let Some((message, status)) = world.any_process().immediate_matched_probe_with_tag(BEAT) {
            let _: (u8, _) = message.matched_receive();
            heard[status.source_rank() as usize] = Instant::now();
        }
        if let Some(silent) = others.clone().find(|&other| heard[other].elapsed() > patience) {
            error_line(format_args!(
                "rank {silent} on {} has been silent for {} s: it was stopped, or its machine or network is gone; all ranks \
                 end here, and the last checkpoint is whole",
                hosts[silent],
                patience.as_secs()
            ));
            world.abort(1);
        }
        thread::park_timeout(INTERVAL);
    }
}
