//! What a program with an operating system needs beside the core: memory of its own, threads, text.
//!
//! Each part owns what a part of the core borrows. Memory is allocated when a part is made; after
//! that, reading tokens and picking the next one allocates a few bytes at most. A size that the
//! system has no memory for is [`Error::OutOfMemory`], and does not end the process.
//!
//! A story, with threads, written as it comes:
//!
//! ```no_run
//! use std::io::{Write, stdout};
//!
//! use infer_core::{BOS, Buffers, Limits, ModelBytes, OwnedTokenizer, Pool, Sampler, Session, TextStream, threads_for};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let file = ModelBytes::read("model.bin")?;
//!     let (model, config) = (file.model()?, *file.model()?.config());
//!     let tokenizer = OwnedTokenizer::new(std::fs::read("tokenizer.bin")?, config.vocab_size)?;
//!     let threads = threads_for(&config, 1);
//!     let pool = Pool::new(threads)?;
//!     let limits = Limits::new(config.seq_len).with_batch(32).with_threads(threads.get());
//!     let mut buffers = Buffers::new(&config, limits)?;
//!     let sampler = Sampler::new(1.0, 0.9, 42)?; // temperature, top-p, seed
//!     let mut session = Session::new(model, &mut buffers, &pool, sampler)?;
//!     session.read(&tokenizer.encode("Once upon a time")?)?;
//!     let mut text = TextStream::new();
//!     while session.pos() < config.seq_len {
//!         let token = session.next_token()?;
//!         if token == BOS {
//!             break;
//!         }
//!         print!("{}", text.push(tokenizer.decode(session.last_token(), token)?));
//!         stdout().flush()?;
//!         session.read(&[token])?;
//!     }
//!     Ok(())
//! }
//! ```
use std::vec;
use std::vec::Vec;

use crate::error::Error;

mod buffers;
mod model;
mod perplexity;
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

/// `n` times `value`, or an error where `vec!` alone would end the process.
fn vec_of<T: Clone>(buffer: &'static str, value: T, n: usize) -> Result<Vec<T>, Error> {
    let mut probe = Vec::<T>::new();
    probe.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { buffer, bytes: n as u64 * size_of::<T>() as u64 })?;
    // Without this the optimiser may drop the probe, as nothing is stored in it.
    drop(std::hint::black_box(probe));
    // vec! gets zeros as pages that the system fills when they are first touched.
    Ok(vec![value; n])
}
