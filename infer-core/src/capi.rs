//! The C interface: the library as an archive and a header, `include/infer_core.h`.
//!
//! The names here are the names in C, and the documentation of each item is what cbindgen puts into
//! the header, so it is written for C. No call allocates, prints or panics. Pointers are checked
//! for null and alignment, buffers for size and overlap, and the order of calls by a mark in the
//! context; what cannot be checked is named under "Safety" and in `docs/FIRMWARE.md`.
#![allow(unsafe_code, non_camel_case_types)]

// In the order of the header, which cbindgen takes from here.
mod plan;

mod context;
mod settings;

mod sequence;

mod error;
mod memory;
mod message;

use core::ffi::c_char;

use crate::math::HASH_START;
use crate::tokenizer::{BOS, EOS};

pub use context::{INFER_CONTEXT_WORDS, infer_context, infer_init};
pub use error::{infer_code, infer_error, infer_text};
pub use memory::{INFER_ALIGN, INFER_PARTS, infer_buffer, infer_memory, infer_part};
pub use message::infer_error_write;
pub use plan::{infer_config, infer_kv, infer_limits, infer_plan, infer_read_config};
pub use sequence::{
    infer_begin, infer_classify, infer_decode, infer_encode, infer_filled, infer_forward, infer_hash_logits,
    infer_penalize, infer_sample, infer_step,
};
pub use settings::{infer_kernels, infer_set_kernels, infer_set_limits, infer_set_sampler};

/// Token that begins a sequence; sampled, it ends a story.
pub const INFER_BOS: u32 = 1;
/// Token that ends a sequence.
pub const INFER_EOS: u32 = 2;
/// Start value of infer_hash_logits.
pub const INFER_HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

const _: () = assert!(INFER_BOS == BOS && INFER_EOS == EOS && INFER_HASH_START == HASH_START);

/// Version of the archive, as text; static.
#[unsafe(no_mangle)]
pub extern "C" fn infer_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Never linked: the symbol check of the archive fails when something could panic.
#[cfg(all(not(feature = "std"), any(target_os = "none", target_family = "wasm")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
