//! Shapes of known models, in f32, for benchmarks and tests that make up weights of their own.

use crate::config::Config;

/// stories260K, as published with llama2.c. Its hidden_dim of 172 leaves groups of 4 at most, so
/// int8 is measured with [`FIRMWARE`].
pub const STORIES_260K: Config = Config::new(64, 172, 5, 8, 512, 512).with_kv_heads(4);
/// `models/firmware`: stories260K with a hidden_dim that groups of 64 divide.
pub const FIRMWARE: Config = Config::new(64, 192, 5, 8, 512, 512).with_kv_heads(4);
/// `models/model.bin`, which infer-cli embeds.
pub const DEFAULT: Config = Config::new(128, 384, 6, 8, 2048, 512).with_kv_heads(4);
/// stories15M.
pub const STORIES_15M: Config = Config::new(288, 768, 6, 6, 32000, 256);
/// stories42M.
pub const STORIES_42M: Config = Config::new(512, 1376, 8, 8, 32000, 1024);
/// stories110M.
pub const STORIES_110M: Config = Config::new(768, 2048, 12, 12, 32000, 1024);
/// TinyLlama 1.1B.
pub const TINYLLAMA_1B: Config = Config::new(2048, 5632, 22, 32, 32000, 2048).with_kv_heads(4);
