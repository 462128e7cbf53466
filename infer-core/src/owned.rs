//! The layer above the core for programs with an operating system: owned memory, threads, text.
//!
//! Each part owns what a part of the core borrows. Memory is allocated when a part is made; after
//! that, reading tokens and picking the next one allocates a few bytes at most. A size that the
//! system has no memory for is an error ([`OutOfMemory`](crate::Error::OutOfMemory)); it does not
//! end the process.
//!
//! A story, with threads, written as it comes:
//!
//! ```no_run
#![doc = include_str!("../examples/story.rs")]
//! ```

mod buffers;
mod memory;
mod model;
mod perplexity;
mod pool;
mod session;
mod text;
mod tokenizer;

pub use buffers::Buffers;
pub use model::ModelBytes;
pub use perplexity::{Perplexity, nats};
pub use pool::{MAX_THREADS, Pool, default_threads, threads_for};
pub use session::Session;
pub use text::TextStream;
pub use tokenizer::OwnedTokenizer;
