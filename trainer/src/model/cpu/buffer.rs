//! Memory from which vectors are loaded.

use std::ops::{Deref, DerefMut};

use super::math::LANES;

/// The numbers of a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);
const _: () = assert!(align_of::<Line>() == size_of::<[f32; LANES]>());

// SAFETY: all bits zero must be a valid value: they are 16 times 0.0.
#[allow(unsafe_code)]
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: every bit pattern must be valid, and there must be no padding. A line is 16 f32, and the
// assertion above says that its alignment is their size.
#[allow(unsafe_code)]
unsafe impl bytemuck::Pod for Line {}

/// A growing slice that begins with a cache line. The allocator begins large ones 16 bytes into a
/// page, where every load of an AVX-512 register would touch two lines.
#[derive(Default)]
pub(super) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    pub fn zeros(len: usize) -> Buffer {
        let mut buffer = Buffer::default();
        buffer.resize(len);
        buffer
    }

    /// Changes the length. New numbers are zero.
    pub fn resize(&mut self, len: usize) {
        let old = self.len;
        self.lines.resize(len.div_ceil(LANES), Line([0.0; LANES]));
        self.len = len;
        if let Some(new) = self.get_mut(old..) {
            new.fill(0.0); // the last line had room, which may hold old numbers
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
