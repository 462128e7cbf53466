//! A training run, from its settings to the exported model.

pub mod chats;
pub mod corpus;
pub mod evaluate;
#[cfg(feature = "cuda")]
mod gpus;
pub mod group;
pub mod interrupt;
pub mod memory;
pub mod plan;
pub mod prepare;
pub mod run;
pub mod saved;
pub mod schedule;
pub mod settings;
pub mod share;
pub mod sources;
pub mod start;
mod step;
pub mod teacher;
