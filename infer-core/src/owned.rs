//! What a program with an operating system needs beside the core: memory of its own, threads, text.
//!
//! Each part owns what a part of the core borrows. Memory is allocated when a part is made; after
//! that, reading tokens and picking the next one allocates a few bytes at most. A size that the
//! system has no memory for is [`Error::OutOfMemory`](crate::Error::OutOfMemory), and does not end the process.
//!
//! A story, with threads, written as it comes:
//!
//! ```no_run
//! use infer_core::{BOS, Buffers, Limits, ModelBytes, OwnedTokenizer, Pool, Sampler, Session, TextStream, threads_for};
//! use std::io::{Write, stdout};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let file = ModelBytes::read("models/model.bin")?;
//!     let model = file.model()?;
//!     let tokenizer = OwnedTokenizer::new(std::fs::read("models/tokenizer.bin")?, model.config().vocab_size)?;
//!     let threads = threads_for(model.config(), 1);
//!     let pool = Pool::new(threads)?;
//!     let mut buffers = Buffers::new(model.config(), Limits::new(256).with_batch(32).with_threads(threads.get()))?;
//!     let mut session = Session::new(model, &mut buffers, &pool, Sampler::new(1.0, 0.9, 42)?)?;
//!     let mut text = TextStream::new();
//!     let mut token = session.next_after(&tokenizer.encode("Once upon a time")?)?;
//!     while token != BOS && session.pos() < 256 {
//!         print!("{}", text.push(tokenizer.decode(session.last_token(), token)?));
//!         stdout().flush()?;
//!         token = session.next_after(&[token])?;
//!     }
//!     Ok(())
//! }
//! ```

mod buffers;
mod memory;
mod model;
mod perplexity;
// The C header has none of its constants.
/// cbindgen:ignore
mod pool;
mod session;
mod text;
mod tokenizer;

pub use buffers::Buffers;
pub use model::ModelBytes;
pub use perplexity::{Perplexity, nats};
pub use pool::{Pool, default_threads, threads_for};
pub use session::Session;
pub use text::TextStream;
pub use tokenizer::OwnedTokenizer;
