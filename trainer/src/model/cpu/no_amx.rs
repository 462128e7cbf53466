//! Stands in for AMX on other processors and systems: [`available`] says that there is none.

use super::mat::{Mat, MatMut};

#[derive(Default)]
pub(super) struct Panels;

impl Panels {
    pub fn load(&mut self, _: Mat) {
        unreachable!("AMX is not available");
    }
}

/// The values are made, but only AMX reads the panels.
#[allow(dead_code)]
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    Plain(Mat<'a>),
    Packed(&'a Panels),
}

pub(super) fn available() -> bool {
    false
}

pub(super) fn has_bfloat16() -> bool {
    false
}

#[allow(dead_code)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terms {
    Three,
    One,
}

pub(super) fn multiply(_: MatMut, _: Mat, _: Right, _: bool, _: Terms) {
    unreachable!("AMX is not available");
}
