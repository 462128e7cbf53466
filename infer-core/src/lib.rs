#![cfg_attr(feature = "std", doc = include_str!("../README.md"))]
//!
//! # How it works
//! A model file goes in, text comes out, and everything in between is memory that the caller lends.
//! The modules follow the data:
//!
//! ```text
//! &[u8]           ─ Model::from_bytes ─> Model      format, matrix, model
//!                   checked once, borrowed for ever
//! caller's memory ─ State::new ────────> State      plan, cache, state
//!                   activations (hot), KV cache (cold)
//! text            ─ Tokenizer::encode ─> tokens     tokenizer
//! tokens          ─ forward, classify ─> logits     forward, kernels, math
//!                   one step per layer, one row of logits per token
//! logits          ─ Sampler::sample ───> token      sampler
//! token           ─ Tokenizer::decode ─> bytes      tokenizer
//! ```
//!
//! # Determinism
//! Sums run in eight lanes in a fixed order ([`math`]), products and sums are rounded one by one,
//! and the transcendental functions have one implementation. So the same model, tokens and KV type
//! give bit-identical logits on every instruction set, batch size and number of threads.
//!
//! # What it relies on
//! Additions round to nearest ([`State::new`] checks it), floating point registers belong to the
//! calling task, unaligned words may be read (CCR.UNALIGN_TRP is 0 on a Cortex-M), and the stack
//! has 8 KB. `docs/FIRMWARE.md` in the repository says what that means for FreeRTOS, Zephyr, RTIC
//! and embassy.
//!
//! # What it does not do
//! Without `std` it neither reads files nor starts threads (bring a [`Runner`]). It never prints,
//! and runs no architecture but Llama-2.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))] // docs.rs shows which feature an item needs

#[cfg(target_endian = "big")]
compile_error!("model files are little endian and are used where they lie: big-endian targets are not supported");

// The C library for a desktop takes the panic handler of std; on bare metal and in WebAssembly it
// has its own.
#[cfg(any(test, feature = "std", all(feature = "capi", not(any(target_os = "none", target_family = "wasm")))))]
extern crate std;

#[cfg(feature = "std")]
mod batch;
mod cache;
#[cfg(feature = "capi")]
pub mod capi;
mod config;
mod engine;
mod error;
pub mod format;
mod forward;
mod kernels;
#[cfg(feature = "std")]
mod mapped;
pub mod math;
mod matrix;
mod model;
#[cfg(feature = "std")]
pub mod owned;
mod panel;
mod plan;
mod quant;
mod rope;
mod runner;
mod sampler;
#[cfg(feature = "std")]
mod scratch;
pub mod shapes;
mod state;
pub mod tokenizer;

pub use cache::KvBuffers;
pub use config::{Config, WeightType};
pub use engine::Engine;
pub use error::Error;
pub use forward::{begin, classify, forward, step};
pub use kernels::Kernels;
#[cfg(feature = "std")]
pub use mapped::{MappedModel, Mmap, OpenError, exit_when_a_map_is_cut, map_file};
pub use math::{HASH_START, hash_bytes, hash_logits};
pub use matrix::{Matrix, Q8Matrix};
pub use model::{Aligned, Layer, Model};
#[cfg(feature = "std")]
pub use owned::{
    Buffers, MAX_THREADS, ModelBytes, OwnedTokenizer, Perplexity, Pool, Session, TextStream, default_threads, nats,
    threads_for,
};
pub use plan::{KvType, Limits, Plan};
pub use rope::{Rope, RopeScaling};
pub use runner::{Runner, Serial};
pub use sampler::{ProbIndex, Sampler, penalize};
pub use state::{HotBuffers, State};
pub use tokenizer::{BOS, EOS, IndexEntry, MergeSlot, Tokenizer, UNK, build_index, count_entries};
