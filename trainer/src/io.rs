//! Files of weights, read and written without dfdx.

pub mod checkpoint;
pub mod export;
pub mod files;
pub mod inference;
pub mod weights;
