//! Reads, writes and runs files of weights, without dfdx.

pub mod checkpoint;
pub mod export;
pub mod files;
pub mod inference;
pub mod tensors;
pub mod weights;
