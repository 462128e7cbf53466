//! Text for Llama models on hosts: tokenizer.bin or tokenizer.json, and chat templates.
//!
//! ```text
//! text     ─ TextTokenizer::encode ─> tokens     tokenizer, added
//! messages ─ Template::render ─────> tokens      template
//! token    ─ TextTokenizer::decode ─> bytes
//! ```
//!
//! What a person writes never becomes a special token: [`Special::AsText`] encodes the text
//! `<|im_end|>` as the letters that it has. Templates alone place special tokens.

mod added;
mod clock;
mod template;
mod tokenizer;

pub use template::{BESIDE, CHAT_TEMPLATE, Message, Rendered, Template};
pub use tokenizer::{Special, TOKENIZER_BIN, TOKENIZER_JSON, TextTokenizer};
