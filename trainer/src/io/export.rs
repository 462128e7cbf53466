//! Writes models: model files, and the files of other programs.
//!
//! A [`Job`](job::Job) says what to write; each kind of file has a writer, which asks for one
//! tensor at a time.

pub mod gguf;
pub mod huggingface;
pub mod job;
pub mod output;
pub mod pieces;
pub mod source;
pub mod tensor_type;
pub mod tokenizer_json;
