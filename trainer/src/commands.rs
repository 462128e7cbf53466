//! The subcommands: each has its arguments and a `run` that hands them to the library.

pub mod eval;
pub mod sample;
pub mod shell;
