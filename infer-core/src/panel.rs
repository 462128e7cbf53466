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
pub(crate) fn run_disjoint<S: Share>(runner: &dyn Runner, tasks: usize, outs: S, task: impl Fn(usize, S::Part) + Sync) {
    runner.run(tasks, &|index| {
        // SAFETY: a Runner calls each index below `tasks` once and no other, `tasks` is the same
        // for all, and all parts are gone when `run` returns.
        task(index, unsafe { outs.part(index, tasks) });
    });
}

/// Runs `tasks` tasks that take `blocks` pieces of work as they come to them, so that a late thread
/// does fewer. Each task gets its own part of the scratch, and with each block that block's part of
/// every output.
#[cfg(feature = "std")]
pub(crate) fn run_blocks<S: Share>(
    runner: &dyn Runner,
    tasks: usize,
    blocks: usize,
    scratch: Turns<'_, f32>,
    outs: S,
    task: impl Fn(usize, &mut [f32], S::Part) + Sync,
) {
    use core::sync::atomic::{AtomicUsize, Ordering};

    let next = AtomicUsize::new(0);
    run_disjoint(runner, tasks, scratch, |_, mut scratch| {
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= blocks {
                return;
            }
            // SAFETY: the counter gives each index below `blocks` once, and all parts are gone when
            // the tasks end.
            task(block, scratch.row(0), unsafe { outs.part(block, blocks) });
        }
    });
}

/// A buffer and the rule that shares it out among tasks.
///
/// # Safety
/// The parts of different indices do not overlap, and lie within the buffer.
pub(crate) unsafe trait Share: Sync {
    type Part;

    /// The part of task `index` of `tasks`.
    ///
    /// # Safety
    /// `index` is below `tasks`; while the part lives, no other part of the same index lives, and
    /// no part of another number of tasks.
    unsafe fn part(&self, index: usize, tasks: usize) -> Self::Part;
}

// SAFETY: parts of different buffers do not overlap, and those of one do not by its own rule.
unsafe impl<S: Share, const N: usize> Share for [S; N] {
    type Part = [S::Part; N];

    unsafe fn part(&self, index: usize, tasks: usize) -> Self::Part {
        // SAFETY: the caller vouches for the same.
        self.each_ref().map(|out| unsafe { out.part(index, tasks) })
    }
}

// SAFETY: as for arrays.
unsafe impl<A: Share, B: Share> Share for (A, B) {
    type Part = (A::Part, B::Part);

    unsafe fn part(&self, index: usize, tasks: usize) -> Self::Part {
        // SAFETY: the caller vouches for the same.
        unsafe { (self.0.part(index, tasks), self.1.part(index, tasks)) }
    }
}

/// A buffer (batch, width) cut by columns. It may be one of several that lie side by side: together
/// they are cut every `per_task` columns, and this one begins at column `start` of them all.
pub(crate) struct Columns<'a> {
    buffer: Buffer<'a, f32>,
    width: usize,
    start: usize,
    per_task: usize,
}

impl<'a> Columns<'a> {
    pub fn new(out: &'a mut [f32], width: usize, start: usize, per_task: usize) -> Columns<'a> {
        Columns { buffer: Buffer::new(out), width, start, per_task }
    }

    /// The part of this buffer in a range of the columns of all of them.
    ///
    /// # Safety
    /// No other part that lives has one of these columns.
    #[cfg(feature = "std")]
    unsafe fn range(&self, columns: Range<usize>) -> Panel<'a> {
        let column = |i: usize| i.saturating_sub(self.start).min(self.width);
        self.columns(column(columns.start)..column(columns.end))
    }

    /// Columns of this buffer, of all rows.
    #[inline(always)]
    fn columns(&self, columns: Range<usize>) -> Panel<'a> {
        let batch = self.buffer.len.checked_div(self.width).unwrap_or(0);
        self.buffer.panel(columns.start, columns.len(), batch, self.width)
    }
}

// SAFETY: the ranges [index·per_task, (index + 1)·per_task) of different indices do not overlap,
// nor do they after moving by `start` and cutting off at 0 and `width`: bounds never decrease as
// the index grows, since the product saturates. `batch` rows of `width` elements lie within the
// buffer.
unsafe impl<'a> Share for Columns<'a> {
    type Part = Panel<'a>;

    unsafe fn part(&self, index: usize, _: usize) -> Panel<'a> {
        let column = |index: usize| index.saturating_mul(self.per_task).saturating_sub(self.start).min(self.width);
        self.columns(column(index)..column(index.saturating_add(1)))
    }
}

/// A buffer cut into chunks of equal length, which tasks take in turns: the first task has the
/// first chunk, then the one after those of all others, and so on. Each chunk is a row of its
/// panel.
pub(crate) struct Turns<'a, T> {
    buffer: Buffer<'a, T>,
    chunk: usize,
}

impl<'a, T> Turns<'a, T> {
    pub fn new(out: &'a mut [T], chunk: usize) -> Turns<'a, T> {
        Turns { buffer: Buffer::new(out), chunk }
    }
}

// SAFETY: chunk index + b·tasks belongs to row b of one index alone, as index < tasks, and `batch`
// counts the whole chunks of this index that the buffer has. `start` wraps only where `batch` is
// 0, and the stride only where `batch` is at most 1: no row then begins at a multiple of it.
unsafe impl<'a, T: Send> Share for Turns<'a, T> {
    type Part = Panel<'a, T>;

    unsafe fn part(&self, index: usize, tasks: usize) -> Panel<'a, T> {
        let chunks = self.buffer.len.checked_div(self.chunk).unwrap_or(0);
        let batch = chunks.saturating_sub(index).div_ceil(tasks.max(1));
        let start = index.wrapping_mul(self.chunk);
        self.buffer.panel(start, self.chunk, batch, tasks.wrapping_mul(self.chunk))
    }
}

/// How a matrix (rows, width) is cut into parts: `down` ranges of rows, as even as can be, and
/// ranges of `columns` columns, which divide the width. Parts are counted along rows.
#[cfg(feature = "std")]
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub rows: usize,
    pub width: usize,
    pub down: usize,
    pub columns: usize,
}

#[cfg(feature = "std")]
impl Grid {
    /// Ranges of columns.
    pub fn across(&self) -> usize {
        self.width.checked_div(self.columns).unwrap_or(0)
    }

    /// The rows and columns of a part.
    pub fn part(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let across = self.across().max(1);
        let row = |i: usize| (i.min(self.down) * self.rows).checked_div(self.down).unwrap_or(0);
        let column = index % across * self.columns;
        (row(index / across)..row(index / across + 1), column..column + self.columns)
    }
}

/// A buffer cut as a [`Grid`] says.
#[cfg(feature = "std")]
pub(crate) struct Tiles<'a> {
    buffer: Buffer<'a, f32>,
    grid: Grid,
}

#[cfg(feature = "std")]
impl<'a> Tiles<'a> {
    /// `None` if the buffer is smaller than the grid.
    pub fn new(out: &'a mut [f32], grid: Grid) -> Option<Tiles<'a>> {
        let fits = out.len() >= grid.rows.checked_mul(grid.width)? && grid.columns <= grid.width;
        fits.then(|| Tiles { buffer: Buffer::new(out), grid })
    }
}

// SAFETY: parts differ in index / across, and then in their rows, whose bounds never decrease, or
// in index % across, and then in their columns. All are within the grid, as `across` times the
// columns are at most the width, and the grid is within the buffer.
#[cfg(feature = "std")]
unsafe impl<'a> Share for Tiles<'a> {
    type Part = Panel<'a>;

    unsafe fn part(&self, index: usize, _: usize) -> Panel<'a> {
        let (rows, columns) = self.grid.part(index);
        let start = rows.start * self.grid.width + columns.start;
        self.buffer.panel(start, columns.len(), rows.len(), self.grid.width)
    }
}

/// Runs tasks that share the columns of all `outs`, which lie side by side. Each takes columns as
/// it comes to them: many at first and few at the end, but `least` or more, so that a late thread
/// costs little. It is told the first of them.
#[cfg(feature = "std")]
pub(crate) fn run_guided<const N: usize>(
    runner: &dyn Runner,
    tasks: usize,
    least: usize,
    outs: [Columns<'_>; N],
    task: impl Fn(usize, [Panel<'_>; N]) + Sync,
) {
    use core::sync::atomic::{AtomicUsize, Ordering};

    let total: usize = outs.iter().map(|out| out.width).sum();
    let next = AtomicUsize::new(0);
    runner.run(tasks, &|_| {
        loop {
            let start = next.load(Ordering::Relaxed);
            let rest = total.saturating_sub(start);
            if rest == 0 {
                return;
            }
            let len = if tasks > 1 { (rest / (2 * tasks)).max(1).next_multiple_of(least.max(1)) } else { rest };
            let end = start.saturating_add(len);
            if next.compare_exchange(start, end, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                // SAFETY: the exchange gives each column to one task, once.
                task(start, outs.each_ref().map(|out| unsafe { out.range(start..end) }));
            }
        }
    });
}

/// A buffer that several tasks write at once.
struct Buffer<'a, T> {
    ptr: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer comes from a `&mut [T]`, which may be sent. Threads that share a buffer reach
// its elements by `Share::part` only, whose parts do not overlap.
unsafe impl<T: Send> Sync for Buffer<'_, T> {}

impl<'a, T> Buffer<'a, T> {
    fn new(out: &'a mut [T]) -> Buffer<'a, T> {
        Buffer { ptr: out.as_mut_ptr(), len: out.len(), borrow: PhantomData }
    }

    /// `width` columns from `start` on of `batch` rows, which begin `stride` elements after each
    /// other.
    fn panel(&self, start: usize, width: usize, batch: usize, stride: usize) -> Panel<'a, T> {
        Panel { ptr: self.ptr.wrapping_add(start), batch, stride, start, width, borrow: PhantomData }
    }
}

/// Columns of a buffer of rows, exclusively borrowed.
pub(crate) struct Panel<'a, T = f32> {
    ptr: *mut T, // of the first column of row 0, where there is one
    batch: usize,
    stride: usize,
    start: usize,
    width: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Panel<'a, T> {
    /// All columns of a (batch, width) buffer.
    #[cfg(test)]
    pub fn new(out: &'a mut [T], width: usize) -> Panel<'a, T> {
        Panel { ptr: out.as_mut_ptr(), batch: out.len() / width, stride: width, start: 0, width, borrow: PhantomData }
    }

    /// Which columns of the buffer they are.
    pub fn columns(&self) -> Range<usize> {
        self.start..self.start + self.width
    }

    /// Where row `b` begins, if there is one.
    #[cfg(all(target_arch = "x86_64", feature = "std"))]
    pub fn row_ptr(&mut self, b: usize) -> *mut T {
        self.ptr.wrapping_add(b * self.stride)
    }

    /// Row `b`; empty from `batch` on.
    #[inline(always)]
    pub fn row(&mut self, b: usize) -> &mut [T] {
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
    #[cfg(feature = "std")]
    use std::vec;

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

    #[cfg(feature = "std")]
    #[test]
    fn blocks_of_a_grid() {
        for (rows, down) in [(1, 1), (7, 3), (8, 4), (3, 5)] {
            let mut out = vec![0.0; rows * 6 + 1]; // and one element left over
            let grid = Grid { rows, width: 6, down, columns: 2 };
            let mut scratch = [0.0; 4];
            let tiles = Tiles::new(&mut out, grid).unwrap();
            let blocks = grid.down * grid.across();
            run_blocks(&Serial, 2, blocks, Turns::new(&mut scratch, 2), tiles, |block, scratch, mut out| {
                let (rows, columns) = grid.part(block);
                assert_eq!((scratch.len(), out.columns().len()), (2, columns.len()));
                mark(columns.start / 2, &mut out, rows.len());
            });
            let (last, all) = out.split_last().unwrap();
            assert!(all.chunks(6).all(|row| row == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]), "{rows} rows in {down}");
            assert_eq!(*last, 0.0);
        }
        let grid = Grid { rows: 2, width: 6, down: 1, columns: 2 };
        assert!(Tiles::new(&mut [0.0; 11], grid).is_none());
        assert!(Tiles::new(&mut [0.0; 12], Grid { columns: 7, ..grid }).is_none());
    }

    #[cfg(feature = "std")]
    #[test]
    fn pieces_cover_all_columns_once() {
        for (width, tasks, least) in [(1, 3, 8), (3, 2, 1), (100, 4, 8), (64, 1, 0), (5, 7, 2)] {
            let (mut a, mut b) = (vec![0.0; 2 * width], [0.0; 6]); // (2, width) and (2, 3)
            let outs = [Columns::new(&mut a, width, 0, 0), Columns::new(&mut b, 3, width, 0)];
            run_guided(&Serial, tasks, least, outs, |_, [mut a, mut b]| {
                mark(0, &mut a, 2);
                mark(0, &mut b, 2);
            });
            assert!(a.iter().chain(&b).all(|x| *x == 1.0), "{width} columns, {tasks} tasks");
        }
        run_guided(&Serial, 2, 8, [Columns::new(&mut [], 0, 0, 0)], |_, _| unreachable!());
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
        run_disjoint(&Serial, 2, [Turns::<f32>::new(&mut [], 0)], |_, [mut out]| assert!(out.row(0).is_empty()));
    }
}
