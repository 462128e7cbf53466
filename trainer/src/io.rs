//! Reads, writes and runs files of weights, without dfdx.

pub mod checkpoint;
pub mod export;
pub mod files;
pub mod foreign;
pub mod import;
pub mod inference;
pub mod lora;
pub mod loss_scale;
pub mod model_file;
pub mod pretokenizers;
pub mod rotary;
pub mod tensors;
pub mod vocabulary;
pub mod watched;
pub mod weights;
