//! What stands in for [`amx`](super::amx) on other processors and systems.

use super::mat::{Mat, MatMut};

#[derive(Default)]
pub(super) struct Panels;

impl Panels {
    pub fn load(&mut self, _: Mat) {
        unreachable!("AMX is not available");
    }
}

#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    Plain(Mat<'a>),
    Packed(&'a Panels),
}

pub(super) fn available() -> bool {
    false
}

pub(super) fn multiply(_: MatMut, _: Mat, _: Right, _: bool) {
    unreachable!("AMX is not available");
}
