//! Trains small Llama-2 models and exports them as files of llama2.c: the parts of the `trainer`
//! program.

pub mod model;
