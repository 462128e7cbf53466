//! The commands of the program. Each has its arguments, and a `run` that hands them to the library.

pub mod download;
pub mod eval;
pub mod export;
pub mod pretokenize;
pub mod sample;
pub mod shell;
pub mod train;
pub mod train_vocab;
