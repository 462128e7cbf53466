//! In place of [`amx`](super) on other processors and systems.

use super::products::{Right, View};

#[derive(Default)]
pub(super) struct Panels;

impl Panels {
    pub fn load(&mut self, _: View, _: (usize, usize)) {
        unreachable!("AMX is not available");
    }
}

pub(super) fn available() -> bool {
    false
}

pub(super) fn matmul(_: (usize, usize, usize), _: &mut [f32], _: usize, _: View, b: Right, _: bool) {
    let Right { panels: None | Some(Panels), .. } = b;
    unreachable!("AMX is not available");
}
