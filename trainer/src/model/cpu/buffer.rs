//! Memory that vectors are loaded from.

use std::ops::{Deref, DerefMut};

use super::math::LANES;

/// As many numbers as a cache line has.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);
const _: () = assert!(align_of::<Line>() == size_of::<[f32; LANES]>());

// SAFETY: numbers of any bits, zeros among them, without padding: 16 times 4 bytes are the
// alignment.
#[allow(unsafe_code)]
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl bytemuck::Pod for Line {}

/// A growing slice that begins with a cache line. From the allocator large ones begin 16 bytes into
/// a page, and every load of an AVX-512 register would touch two lines.
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

    /// What is new is zero.
    pub fn resize(&mut self, len: usize) {
        let old = self.len;
        self.lines.resize(len.div_ceil(LANES), Line([0.0; LANES]));
        self.len = len;
        if let Some(new) = self.get_mut(old..) {
            new.fill(0.0); // the last line had room, where something may be left
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
