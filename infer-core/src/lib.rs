//! Llama-2 inference over a borrowed slice of weights: `no_std`, no allocation, no panic.
//!
//! A model file of llama2.c goes in, text comes out, and everything in between is memory that the
//! caller lends. The modules follow the data:
//!
//! ```text
//! &[u8]           ─ Model::from_bytes ─> Model     checked once, borrowed for ever        format, matrix, model
//! caller's memory ─ State::new ────────> State     activations (hot), KV cache (cold)     plan, cache, state
//! text            ─ Tokenizer::encode ─> tokens                                           tokenizer
//! tokens          ─ forward, classify ─> logits    one step per layer, one per row        forward, kernels, math
//! logits          ─ Sampler::sample ───> token ─ Tokenizer::decode ─> bytes               sampler
//! ```
//!
//! Buffer sizes come from a [`Plan`], which is `const`: firmware sizes its statics from the model's
//! header at compile time, and a model that does not fit is a compile error.
//!
//! ```
//! use infer_core::{Config, KvType, Limits, WeightType};
//!
//! const CONFIG: Config = Config { // stories260K; in firmware, Config::from_header(include_bytes!(…))
//!     dim: 64, hidden_dim: 172, n_layers: 5, n_heads: 8, n_kv_heads: 4, vocab_size: 512, seq_len: 512,
//!     shared_classifier: true, weights: WeightType::F32,
//! };
//! const LIMITS: Limits = Limits { max_seq: 128, batch: 1, threads: 1, kv: KvType::F32 };
//! const PLAN: infer_core::Plan = match CONFIG.plan(LIMITS) {
//!     Ok(plan) => plan,
//!     Err(_) => panic!("this model does not run within these limits"),
//! };
//! static mut KV_CACHE: [f32; PLAN.kv_values] = [0.0; PLAN.kv_values];
//! assert_eq!(PLAN.kv_bytes(), 2 * 5 * 128 * 32 * 4);
//! ```
//!
//! # Determinism
//! The same model, tokens and KV type give bit-identical logits on every instruction set, batch
//! size and number of threads: sums run in eight lanes in a fixed order ([`math`]), products and
//! sums are rounded one by one, and the transcendental functions have one implementation. A hash of
//! the logits on a desktop is the golden value for a chip.
//!
//! # What it takes for granted
//! Additions round to nearest ([`State::new`] looks), floating point registers belong to the
//! calling task, unaligned words may be read (CCR.UNALIGN_TRP is 0 on a Cortex-M), and the stack
//! has 8 KB. `docs/FIRMWARE.md` in the repository says what that means for FreeRTOS, Zephyr, RTIC
//! and embassy.
//!
//! # What it does not do
//! It neither reads files (except `MappedModel` under `std`) nor prints; it has no threads of its
//! own (bring a [`Runner`]); it runs no architecture but Llama-2.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))] // docs.rs shows which feature an item needs

#[cfg(target_endian = "big")]
compile_error!("model files are little endian and are used where they lie: big-endian targets are not supported");

// The C library for a desktop takes the panic handler of std; on bare metal and in WebAssembly it
// has its own.
#[cfg(any(test, feature = "std", all(feature = "capi", not(any(target_os = "none", target_family = "wasm")))))]
extern crate std;

mod cache;
#[cfg(feature = "capi")]
pub mod capi;
mod config;
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
mod runner;
mod sampler;
pub mod shapes;
mod state;
pub mod tokenizer;

pub use cache::KvBuffers;
pub use config::{Config, WeightType};
pub use error::Error;
pub use forward::{Engine, begin, classify, forward, step};
pub use kernels::Kernels;
#[cfg(feature = "std")]
pub use mapped::{MappedModel, Mmap, OpenError, exit_when_a_map_is_cut, map_file};
pub use math::{HASH_START, hash_bytes, hash_logits};
pub use matrix::{Matrix, Q8Matrix};
pub use model::{Aligned, Layer, Model};
#[cfg(feature = "std")]
pub use owned::{
    Buffers, ModelBytes, OwnedTokenizer, Perplexity, Pool, Session, TextStream, default_threads, nats, threads_for,
};
pub use plan::{KvType, Limits, Plan};
pub use runner::{Runner, Serial};
pub use sampler::{ProbIndex, Sampler, penalize};
pub use state::{HotBuffers, State};
pub use tokenizer::{BOS, EOS, IndexEntry, MergeSlot, Tokenizer, UNK, build_index, count_entries};

/// The examples of the README, compiled as doc tests.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
struct Readme;
