//! The processes that train one model together: each computes the gradients of other sequences.
//!
//! ```text
//! step:  pass 0        pass 1        …           each rank takes the sequences after those of the
//!        rank 0 1 2…   rank 0 1 2…               rank before it, batch_size at a time
//!        gradients of all passes and ranks ── sum ──> clip, AdamW: the same on each rank
//! ```
//!
//! So N ranks see in a step what one process sees with N times the batch size, or N times the
//! passes. Rank 0 alone prints and writes files. `link` is what they do together: `one` for a
//! process on its own, `mpi` for those of mpirun.

mod link;
#[cfg(feature = "mpi")]
mod mpi;
mod one;

use std::fmt::{self, Display};

use anyhow::Context;

use self::link::Link;
use self::one::One;
use crate::io::checkpoint::{Order, Run};
use crate::model::{AllReduce, Backend, Gradients, Llama};
use crate::report::output::{Told, error_line, mute, one_line, status_of};

/// Numbers that are sent at once, if no tensor has more.
const MESSAGE: usize = 1 << 24;

/// The group that this process is in.
pub struct Group {
    link: Box<dyn Link>,
}

/// Whose error it is, of one that every rank knows of: all of them end on their own.
#[derive(Clone, Copy, Debug)]
enum At {
    /// One rank has it.
    Rank(usize),
    /// All ranks have it.
    All,
}

impl Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Rank(rank) => write!(f, "rank {rank}"),
            At::All => f.write_str("all ranks"),
        }
    }
}

impl Group {
    /// The processes that mpirun has started, or this one alone.
    ///
    /// # Errors
    /// There are several, and this program was built without the feature `mpi`, or MPI does not
    /// start.
    pub fn join() -> anyhow::Result<Group> {
        let link = match of_launcher("OMPI_COMM_WORLD_SIZE") {
            Some(size) if size > 1 => join_others(size)?,
            _ => Box::new(One),
        };
        if link.rank() > 0 {
            mute();
        }
        Ok(Group { link })
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.link.rank()
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.link.size()
    }

    /// The number of processes on this machine.
    pub fn local_size(&self) -> usize {
        if self.size() == 1 { 1 } else { of_launcher("OMPI_COMM_WORLD_LOCAL_SIZE").unwrap_or(1) }
    }

    /// Whether this process prints and writes.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// The number of the GPU for this process, where the settings say `first`: one each for the
    /// processes of a machine, unless each sees one alone.
    pub fn gpu(&self, first: usize) -> usize {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").map_or(0, |list| list.split(',').count());
        if visible == 1 { first } else { first + of_launcher("OMPI_COMM_WORLD_LOCAL_RANK").unwrap_or(0) }
    }

    /// Describes the group in words, for a line of its own; nothing of one process.
    pub fn describe(&self) -> String {
        let threads = rayon::current_num_threads();
        let s = if threads == 1 { "" } else { "s" };
        match self.size() {
            1 => String::new(),
            n => format!("{n} processes, each with {threads} thread{s}, share the sequences of a step\n"),
        }
    }

    /// Does on rank 0 what only one process may do. All ranks wait for it.
    ///
    /// # Errors
    /// That of rank 0, on all ranks.
    pub fn lead(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.agree(if self.leads() { work() } else { Ok(()) })
    }

    /// Lets rank 0 prepare something, and then the others, with the text that it hands on.
    ///
    /// # Errors
    /// Those of any rank, on all ranks.
    pub fn prepare<T>(
        &self,
        prepare: impl FnOnce(Option<String>) -> anyhow::Result<T>,
        hand_on: impl FnOnce(&T) -> anyhow::Result<String>,
    ) -> anyhow::Result<T> {
        if self.size() == 1 {
            return prepare(None);
        }
        if self.leads() {
            let (text, done) = self.agree(prepare(None).and_then(|done| Ok((hand_on(&done)?, done))))?;
            self.link.broadcast(text.into_bytes());
            self.agree(Ok(done))
        } else {
            self.agree(Ok(()))?;
            let text = self.link.broadcast(Vec::new());
            self.agree(String::from_utf8(text).map_err(anyhow::Error::from).and_then(|text| prepare(Some(text))))
        }
    }

    /// Passes a result on if all ranks have one.
    ///
    /// # Errors
    /// The own error, if this is the first rank with one, else that another rank reports its.
    pub fn agree<T>(&self, mine: anyhow::Result<T>) -> anyhow::Result<T> {
        if self.size() == 1 {
            return mine;
        }
        let failed = self.link.gather(&[f64::from(u8::from(mine.is_err()))]);
        match failed.iter().position(|failed| *failed > 0.0) {
            None => mine,
            Some(first) => {
                let is_all = failed.iter().all(|failed| *failed > 0.0);
                self.end_all(mine, first, if is_all { At::All } else { At::Rank(first) })
            }
        }
    }

    /// Marks a result that all ranks have alike. Unlike [`agree`](Self::agree) it asks no other
    /// rank.
    ///
    /// # Errors
    /// As [`agree`](Self::agree).
    pub fn alike<T>(&self, mine: anyhow::Result<T>) -> anyhow::Result<T> {
        if self.size() == 1 || mine.is_ok() { mine } else { self.end_all(mine, 0, At::All) }
    }

    fn end_all<T>(&self, mine: anyhow::Result<T>, first: usize, at: At) -> anyhow::Result<T> {
        match mine {
            Err(e) if self.rank() == first => Err(e.context(at)),
            Err(e) => Err(Told(status_of(&e)).into()),
            Ok(_) => Err(Told(1).into()),
        }
    }

    /// The numbers of every rank, one rank after the other. All ranks give equally many.
    pub fn gather(&self, numbers: &[f64]) -> Vec<f64> {
        self.link.gather(numbers)
    }

    /// Checks that all ranks have the same weights, and the same data.
    ///
    /// # Errors
    /// A rank has others than rank 0.
    pub fn check_equal<D: Backend>(&self, model: &Llama<D>, run: &Run) -> anyhow::Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let weights = model.trained().iter().try_fold(0, |sum, parameter| {
            let values = D::values(parameter)?;
            anyhow::Ok(crc32c::crc32c_append(sum, bytemuck::cast_slice(&values)))
        });
        let weights = self.agree(weights)?;
        let Order { epoch, chats, .. } = run.order;
        let mine = [f64::from(weights), run.iter as f64, epoch as f64, f64::from(chats)];
        let is_equal = self.gather(&mine)[..mine.len()] == mine;
        self.agree(is_equal.then_some(()).with_context(|| {
            format!(
                "the weights or the data at step {} are not those of rank 0: all machines need the same files, best in a \
                 folder that they share, and processors of one kind",
                run.iter
            )
        }))
    }

    /// Checks that all ranks have computed the same number.
    ///
    /// # Errors
    /// They have not.
    pub fn check_same(&self, what: &str, number: f64) -> anyhow::Result<()> {
        let all = self.gather(&[number]);
        let is_same = |other: &f64| *other == all[0] || (other.is_nan() && all[0].is_nan());
        self.alike(all.iter().all(is_same).then_some(()).with_context(|| {
            format!("the {what} is {all:?} on the ranks, and must be the same: all machines need GPUs of one kind")
        }))
    }

    /// The first number that a rank gives, if one does.
    pub fn first_of(&self, number: Option<u8>) -> Option<u8> {
        let all = self.gather(&[number.map_or(0.0, f64::from)]);
        all.into_iter().find(|number| *number > 0.0).map(|number| number as u8)
    }

    /// Sums the loss and the gradients over all ranks: the gradients on their devices, if these are
    /// connected.
    ///
    /// # Errors
    /// The device fails, or the connection.
    pub fn sum<D: Backend>(
        &self,
        model: &Llama<D>,
        gradients: &mut Gradients<D>,
        loss: &mut f32,
        devices: Option<&dyn AllReduce<D>>,
    ) -> anyhow::Result<()> {
        match devices {
            _ if self.size() == 1 => Ok(()),
            None => self.sum_on_host(model, gradients, loss),
            Some(devices) => {
                devices.sum(gradients)?;
                self.link.sum(std::slice::from_mut(loss));
                Ok(())
            }
        }
    }

    /// Sums over all ranks in as few messages as there is memory for.
    fn sum_on_host<D: Backend>(
        &self,
        model: &Llama<D>,
        gradients: &mut Gradients<D>,
        loss: &mut f32,
    ) -> anyhow::Result<()> {
        let mut rest = model.trained();
        let mut values = vec![*loss]; // goes with the first message
        while !rest.is_empty() {
            let first = values.len();
            let fits = |n: usize| rest[..n].iter().map(|p| p.shape.size()).sum::<usize>() <= MESSAGE;
            let n = (1..=rest.len()).rev().find(|&n| n == 1 || fits(n)).unwrap_or(1);
            let (now, later) = rest.split_at(n);
            for parameter in now {
                let at = values.len();
                values.resize(at + parameter.shape.size(), 0.0);
                D::read_gradient(parameter, gradients, &mut values[at..])?;
            }
            self.link.sum(&mut values);
            if first == 1 {
                *loss = values[0];
            }
            let mut at = first;
            for parameter in now {
                let end = at + parameter.shape.size();
                D::write_gradient(parameter, gradients, &values[at..end])?;
                at = end;
            }
            values.clear();
            rest = later;
        }
        Ok(())
    }

    /// Ends the work of this process and passes its result on. An error is reported here, while all
    /// ranks are there: when one of them ends, mpirun ends the others.
    ///
    /// # Errors
    /// That of `done`.
    pub fn finish(self, done: anyhow::Result<()>) -> anyhow::Result<()> {
        if self.size() == 1 {
            return done;
        }
        let Err(e) = done else {
            self.gather(&[0.0]); // waits for all: a rank that frees its memory for long is watched
            return Ok(());
        };
        let status = status_of(&e);
        if e.is::<At>() {
            error_line(one_line(&e));
        } else if !e.is::<Told>() {
            error_line(format_args!("rank {}: {}", self.rank(), one_line(&e)));
            self.link.abort(status);
        }
        self.gather(&[0.0]); // waits for all
        Err(Told(status).into())
    }
}

/// Threads for this process if it shares its machine with others of its group: its part of the
/// processors. `None` if it does not, or if the environment names a number.
pub fn threads() -> Option<usize> {
    let local = of_launcher("OMPI_COMM_WORLD_LOCAL_SIZE").filter(|&n| n > 1)?;
    if std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return None;
    }
    let mine = std::thread::available_parallelism().map_or(1, usize::from);
    // Where mpirun has bound the process to some processors, other ranks may be bound to them too.
    let is_bound = of_launcher("OMPI_MCA_orte_bound_at_launch") == Some(1);
    let all = if is_bound { processors().unwrap_or(mine) } else { mine };
    Some((all / local).clamp(1, mine))
}

/// The processors of this machine.
fn processors() -> Option<usize> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let counts = ranges.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    });
    counts.sum()
}

/// What mpirun tells the processes that it starts.
fn of_launcher(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

#[cfg(feature = "mpi")]
fn join_others(_: usize) -> anyhow::Result<Box<dyn Link>> {
    Ok(Box::new(self::mpi::World::join()?))
}

#[cfg(not(feature = "mpi"))]
fn join_others(size: usize) -> anyhow::Result<Box<dyn Link>> {
    if of_launcher("OMPI_COMM_WORLD_RANK") != Some(0) {
        // mpirun ends all when the first one ends: rank 0 has this time to say why.
        std::thread::sleep(std::time::Duration::from_secs(1));
        return Err(Told(1).into());
    }
    anyhow::bail!(
        "mpirun has started {size} processes, but this trainer was built without the feature mpi, and each would train the \
         same: build it with --features mpi, or start it without mpirun"
    )
}
