//! A training run, from its settings to the exported model.

pub mod evaluate;
pub mod interrupt;
pub mod memory;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod sources;
pub mod start;
pub mod teacher;
