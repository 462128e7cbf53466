//! Disjoint mutable views of output buffers, for tasks that run on several threads.
//!
//! A batch of outputs is a (batch, rows) matrix, and a task computes a range of its columns: pieces
//! that no slice can describe. Kernels aside, this is the only file of the forward pass with raw
//! pointers.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ops::Range;

use crate::runner::Runner;

/// Runs `tasks` tasks on the runner's threads. Each gets its index and its own part of every
/// output.
pub(crate) fn run_disjoint<S: Share, const N: usize>(
    runner: &dyn Runner,
    tasks: usize,
    outs: [S; N],
    task: impl Fn(usize, [Panel<'_>; N]) + Sync,
) {
    runner.run(tasks, &|index| {
        // SAFETY: a Runner calls each index below `tasks` once and no other, `tasks` is the same
        // for all, and all parts are gone when `run` returns.
        task(index, outs.each_ref().map(|out| unsafe { out.part(index, tasks) }));
    });
}

/// A buffer and the rule that shares it out among tasks.
///
/// # Safety
/// The parts of different indices do not overlap, and lie within the buffer.
pub(crate) unsafe trait Share: Sync {
    /// The part of task `index` of `tasks`.
    ///
    /// # Safety
    /// `index` is below `tasks`; while the part lives, no other part of the same index lives, and
    /// no part of another number of tasks.
    unsafe fn part(&self, index: usize, tasks: usize) -> Panel<'_>;
}

/// A buffer (batch, width) cut by columns. It may be one of several that lie side by side: together
/// they are cut every `per_task` columns, and this one begins at column `start` of them all.
pub(crate) struct Columns<'a> {
    buffer: Buffer<'a>,
    width: usize,
    start: usize,
    per_task: usize,
}

impl<'a> Columns<'a> {
    pub fn new(out: &'a mut [f32], width: usize, start: usize, per_task: usize) -> Columns<'a> {
        Columns { buffer: Buffer::new(out), width, start, per_task }
    }
}

// SAFETY: the ranges [index·per_task, (index + 1)·per_task) of different indices do not overlap,
// nor do they after moving by `start` and cutting off at 0 and `width`: bounds never decrease as
// the index grows, since the product saturates. `batch` rows of `width` elements lie within the
// buffer.
unsafe impl Share for Columns<'_> {
    unsafe fn part(&self, index: usize, _: usize) -> Panel<'_> {
        let column = |index: usize| index.saturating_mul(self.per_task).saturating_sub(self.start).min(self.width);
        let columns = column(index)..column(index.saturating_add(1));
        let batch = self.buffer.len.checked_div(self.width).unwrap_or(0);
        self.buffer.panel(columns.start, columns.len(), batch, self.width)
    }
}

/// A buffer cut into chunks of equal length, which tasks take in turns: the first task has the
/// first chunk, then the one after those of all others, and so on. Each chunk is a row of its
/// panel.
pub(crate) struct Turns<'a> {
    buffer: Buffer<'a>,
    chunk: usize,
}

impl<'a> Turns<'a> {
    pub fn new(out: &'a mut [f32], chunk: usize) -> Turns<'a> {
        Turns { buffer: Buffer::new(out), chunk }
    }
}

// SAFETY: chunk index + b·tasks belongs to row b of one index alone, as index < tasks, and `batch`
// counts the whole chunks of this index that the buffer has. `start` wraps only where `batch` is
// 0, and the stride only where `batch` is at most 1: no row then begins at a multiple of it.
unsafe impl Share for Turns<'_> {
    unsafe fn part(&self, index: usize, tasks: usize) -> Panel<'_> {
        let chunks = self.buffer.len.checked_div(self.chunk).unwrap_or(0);
        let batch = chunks.saturating_sub(index).div_ceil(tasks.max(1));
        let start = index.wrapping_mul(self.chunk);
        self.buffer.panel(start, self.chunk, batch, tasks.wrapping_mul(self.chunk))
    }
}

/// A buffer that several tasks write at once.
struct Buffer<'a> {
    ptr: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a `&mut [f32]`, which may be sent, and f32 has no thread affinity.
// Threads that share a buffer reach its elements by `Share::part` only, whose parts do not overlap.
unsafe impl Sync for Buffer<'_> {}

impl<'a> Buffer<'a> {
    fn new(out: &'a mut [f32]) -> Buffer<'a> {
        Buffer { ptr: out.as_mut_ptr(), len: out.len(), borrow: PhantomData }
    }

    /// `width` columns from `start` on of `batch` rows, which begin `stride` elements after each
    /// other.
    fn panel(&self, start: usize, width: usize, batch: usize, stride: usize) -> Panel<'_> {
        Panel { ptr: self.ptr.wrapping_add(start), batch, stride, start, width, borrow: PhantomData }
    }
}

/// Columns of a buffer of rows, exclusively borrowed.
pub(crate) struct Panel<'a> {
    ptr: *mut f32, // of the first column of row 0, where there is one
    batch: usize,
    stride: usize,
    start: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl<'a> Panel<'a> {
    /// All columns of a (batch, width) buffer.
    #[cfg(test)]
    pub fn new(out: &'a mut [f32], width: usize) -> Panel<'a> {
        Panel { ptr: out.as_mut_ptr(), batch: out.len() / width, stride: width, start: 0, width, borrow: PhantomData }
    }

    /// Which columns of the buffer they are.
    pub fn columns(&self) -> Range<usize> {
        self.start..self.start + self.width
    }

    /// Row `b`; empty from `batch` on.
    #[inline(always)]
    pub fn row(&mut self, b: usize) -> &mut [f32] {
        if b >= self.batch {
            return &mut [];
        }
        // SAFETY: b < batch, so the row lies within the buffer, and no other panel covers it (both
        // by the contract of `Share`). `&mut self` excludes a second row at the same time.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.add(b * self.stride), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Serial;

    /// Adds 1 + the task's index to all elements of its part.
    fn mark(index: usize, out: &mut Panel<'_>, batch: usize) {
        (0..batch).for_each(|b| out.row(b).iter_mut().for_each(|x| *x += 1.0 + index as f32));
        assert!(out.row(batch).is_empty());
    }

    #[test]
    fn columns_of_buffers_side_by_side() {
        let (mut a, mut b) = ([0.0; 10], [0.0; 6]); // (2, 5) and (2, 3)
        let outs = [Columns::new(&mut a, 5, 0, 4), Columns::new(&mut b, 3, 5, 4)];
        run_disjoint(&Serial, 3, outs, |index, [mut a, mut b]| {
            assert_eq!(a.columns(), [0..4, 4..5, 5..5][index]);
            assert_eq!(b.columns(), [0..0, 0..3, 3..3][index]);
            mark(index, &mut a, 2);
            mark(index, &mut b, 2);
        });
        assert_eq!(a, [1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0]);
        assert_eq!(b, [2.0; 6]);
    }

    #[test]
    fn chunks_in_turns() {
        for tasks in 1..5 {
            let mut out = [0.0; 11]; // five chunks, and one element left over
            run_disjoint(&Serial, tasks, [Turns::new(&mut out, 2)], |index, [mut out]| {
                mark(index, &mut out, (index..5).step_by(tasks).count());
            });
            let (chunks, rest) = out.as_chunks::<2>();
            for (i, chunk) in chunks.iter().enumerate() {
                assert_eq!(*chunk, [1.0 + (i % tasks) as f32; 2], "{tasks} tasks");
            }
            assert_eq!(rest, [0.0]);
        }
    }

    #[test]
    fn products_beyond_usize_leave_parts_apart() {
        let mut out = [0.0; 10]; // (2, 5); the first task has all columns
        run_disjoint(&Serial, 3, [Columns::new(&mut out, 5, 0, usize::MAX / 2 + 2)], |index, [mut out]| {
            assert_eq!(out.columns(), [0..5, 5..5, 5..5][index]);
            mark(index, &mut out, 2);
        });
        assert_eq!(out, [1.0; 10]);
        run_disjoint(&Serial, 3, [Turns::new(&mut out, usize::MAX / 2 + 2)], |_, [mut out]| {
            assert!(out.row(0).is_empty());
        });
    }

    #[test]
    fn empty_buffers_have_no_rows() {
        run_disjoint(&Serial, 2, [Columns::new(&mut [], 0, 0, 8)], |_, [mut out]| assert!(out.row(0).is_empty()));
        run_disjoint(&Serial, 2, [Turns::new(&mut [], 0)], |_, [mut out]| assert!(out.row(0).is_empty()));
    }
}
