//! The settings that a user of this example changes first: EDIT 3 and 4 of README.md. EDIT 1 and 2
//! are in `boards/`.

use infer_core::KvType;

/// EDIT 3. Positions of the KV cache: the longest story in tokens, prompt included. Each takes
/// 2 · n_layers · kv_dim elements of type `KV` in RAM. A number above the model's seq_len is cut to
/// it.
pub const MAX_SEQ: usize = 256;
/// EDIT 4. Type of the KV cache.
pub const KV: KvType = KvType::Q8;

/// The beginning of the first story.
pub const PROMPT: &str = "Once upon a time";
/// Longest prompt that the serial line may send, in bytes; each byte takes 24 bytes of RAM.
pub const MAX_PROMPT: usize = 128;
/// Settings of the story that the image tells by itself: infer-cli's -t, -p and -s.
pub const TEMPERATURE: f32 = 1.0;
pub const TOP_P: f32 = 0.9;
pub const SEED: u64 = 1;

/// Tokens of the instruction benchmark.
pub const BENCH_TOKENS: usize = 64;
