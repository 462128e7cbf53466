//! Trains small Llama-2 models and exports them as files of llama2.c: the library behind the
//! `trainer` program.
//!
//! ```text
//! stories ── data ──> token shards, batches       download, corpus, vocab, pretokenize, batches
//! chats   ── data ──> windows of answers          chats, packed
//! batches ── train ──> checkpoints                run, on the model of `model`
//! checkpoint ── io ──> model.bin, stories, loss   export, inference
//! ```
//!
//! - [`commands`]: the arguments of each command, and how it calls the library. main.rs parses the
//!   command line.
//! - [`data`]: from stories and chats to batches of tokens.
//! - [`model`]: the model, its loss and gradients, and the optimiser, in dfdx tensors.
//! - [`train`]: a run from its settings to the exported model.
//! - [`io`]: files of weights, and running them with infer-core. Nothing in it uses dfdx.
//! - [`report`]: output to the user, and the files it leaves.
//!
//! No file uses one that, through others, uses it: ci.sh checks it.

pub mod commands;
pub mod data;
pub mod io;
pub mod model;
pub mod report;
pub mod train;
