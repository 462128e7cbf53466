//! One file per subcommand; [`generate`] and [`chat`] run without one.

pub mod bench;
pub mod chat;
pub mod compare;
pub mod generate;
pub mod inspect;
pub mod perplexity;
pub mod quantize;
pub mod serial;
pub mod shell;
pub mod tokenize;
