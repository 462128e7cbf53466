//! Disjoint mutable views of one output buffer, for tasks that run on several threads.
//!
//! A batch of outputs is a (batch, rows) matrix, and a task computes some columns of it: pieces
//! that no slice can describe. Kernels aside, this is the only place of the crate with raw
//! pointers.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ops::Range;

/// A mutable buffer (batch, width) that several tasks write at once, each its own columns.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut<'a> {
    ptr: *mut f32,
    batch: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a `&mut [f32]`, which may be sent; f32 has no thread affinity.
// Handing out overlapping parts is excluded by the contract of `columns`.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    /// As many rows of `width` as `out` holds.
    pub fn new(out: &'a mut [f32], width: usize) -> SharedOut<'a> {
        let batch = out.len().checked_div(width).unwrap_or(0);
        SharedOut { ptr: out.as_mut_ptr(), batch, width, borrow: PhantomData }
    }

    /// These columns of all rows, cut off at the width.
    ///
    /// # Safety
    /// While the panel lives, no other panel of this buffer may cover any of these columns.
    pub unsafe fn columns(&self, columns: Range<usize>) -> Panel<'a> {
        let end = columns.end.min(self.width);
        let start = columns.start.min(end);
        // SAFETY: start <= width, so the pointer stays within the buffer (or one past its end when
        // batch is 0 or 1).
        let ptr = if self.batch == 0 { self.ptr } else { unsafe { self.ptr.add(start) } };
        Panel { ptr, batch: self.batch, stride: self.width, width: end - start, borrow: PhantomData }
    }
}

/// Some columns of a (batch, stride) buffer, exclusively borrowed.
pub(crate) struct Panel<'a> {
    ptr: *mut f32,
    batch: usize,
    stride: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl Panel<'_> {
    /// Row `b`; empty from `batch` on.
    #[inline(always)]
    pub fn row(&mut self, b: usize) -> &mut [f32] {
        if b >= self.batch {
            return &mut [];
        }
        // SAFETY: b < batch and start + width <= stride, so the row lies within the batch·stride
        // elements that were borrowed; no other panel covers these columns (SharedOut::columns) and
        // `&mut self` excludes a second row.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.add(b * self.stride), self.width) }
    }
}
