//! The model files of llama2.c: header and tensor table. `docs/FORMAT.md` is the specification.
//!
//! A file version ends here: readers and the one writer walk the table that [`Header::layout`]
//! returns, in file order, and nothing else knows where a tensor lies.

mod bytes;
mod extension;
mod header;
mod layout;
#[cfg(feature = "std")]
mod write;

pub(crate) use bytes::read_i32;
pub use extension::{SpecialTokens, TemplateName};
pub use header::{HEADER_V0, HEADER_V1, Header, MAGIC, Version};
pub use layout::{ALIGN, Layout, Tensor, TensorName};
#[cfg(feature = "std")]
pub use write::{WriteError, rotary_table, write};
