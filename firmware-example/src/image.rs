//! What the image carries, and the memory that running it takes, sized by the compiler from the model's header.
#![allow(unsafe_code)]

use core::hint::black_box;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use infer_core::{Aligned, Config, IndexEntry, MergeSlot, Plan, ProbIndex, Tokenizer, build_index};

use crate::settings::MAX_PROMPT;
use crate::story::{self, Memory};

#[unsafe(link_section = ".model")]
static MODEL: Aligned<[u8; MODEL_LEN]> = Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/model.bin")));
#[unsafe(link_section = ".model")]
static TOKENIZER: [u8; TOKENIZER_LEN] = *include_bytes!(concat!(env!("OUT_DIR"), "/tokenizer.bin"));
const MODEL_LEN: usize = include_bytes!(concat!(env!("OUT_DIR"), "/model.bin")).len();
const TOKENIZER_LEN: usize = include_bytes!(concat!(env!("OUT_DIR"), "/tokenizer.bin")).len();

/// What a story with the default settings gives on the host.
pub const HOST_HASH: u64 = u64::from_le_bytes(*include_bytes!(concat!(env!("OUT_DIR"), "/host.hash")));
/// Checksum of the model file.
const CHECKSUM: u64 = u64::from_le_bytes(*include_bytes!(concat!(env!("OUT_DIR"), "/checksum")));

// A model or tokenizer that does not fit is an error of the build.
pub const PLAN: Plan = {
    let Ok(config) = Config::from_header(&MODEL.0) else { panic!("MODEL is not a model file") };
    let Ok(plan) = config.plan(story::limits(config.seq_len)) else { panic!("MODEL does not run within the settings") };
    plan
};
const VOCAB_SIZE: usize = PLAN.config.vocab_size;
const MAX_PROMPT_TOKENS: usize = Tokenizer::max_tokens(MAX_PROMPT);

/// Built by the compiler, so it takes flash and no RAM.
static INDEX: [IndexEntry; VOCAB_SIZE] = {
    let mut index = [IndexEntry::EMPTY; VOCAB_SIZE];
    assert!(build_index(&TOKENIZER, VOCAB_SIZE, &mut index).is_ok(), "TOKENIZER is damaged, or another model's");
    index
};

/// The model file in flash. The compiler knows its bytes: the box keeps it from drawing conclusions, since flash may
/// be damaged.
pub fn model() -> &'static [u8] {
    black_box(&MODEL.0)
}

/// Whether the model in flash is the one that was built in.
pub fn is_intact(model: &[u8]) -> bool {
    story::checksum(model) == black_box(CHECKSUM)
}

/// The tokenizer in flash.
pub fn tokenizer() -> Tokenizer<'static> {
    Tokenizer::with_index(black_box(&TOKENIZER), black_box(&INDEX))
}

/// Room for elements that get their values at run time, so that the memory needs no image in flash.
type Room<T, const N: usize> = MaybeUninit<[T; N]>;

/// The buffers; `None` from the second call on.
pub fn memory() -> Option<Memory<'static>> {
    // sections.x places .hot and .cold in the memories that the board names for them.
    #[unsafe(link_section = ".hot.f32")]
    static mut HOT_F32: Room<f32, { PLAN.hot_f32 }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".hot.i8")]
    static mut HOT_I8: Room<i8, { PLAN.hot_i8 }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".hot.sampler")]
    static mut CANDIDATES: Room<ProbIndex, VOCAB_SIZE> = MaybeUninit::uninit();
    #[unsafe(link_section = ".cold.kv")]
    static mut KV: Room<f32, { PLAN.kv_values }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".cold.merge")]
    static mut MERGE: Room<MergeSlot, MAX_PROMPT_TOKENS> = MaybeUninit::uninit();
    #[unsafe(link_section = ".cold.tokens")]
    static mut TOKENS: Room<u32, MAX_PROMPT_TOKENS> = MaybeUninit::uninit();

    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the flag lets each static be borrowed once.
    unsafe {
        Some(Memory {
            hot_f32: fill(&mut *&raw mut HOT_F32, 0.0),
            hot_i8: fill(&mut *&raw mut HOT_I8, 0),
            kv: fill(&mut *&raw mut KV, 0.0),
            candidates: fill(&mut *&raw mut CANDIDATES, ProbIndex { prob: 0.0, index: 0 }),
            merge: fill(&mut *&raw mut MERGE, MergeSlot::EMPTY),
            tokens: fill(&mut *&raw mut TOKENS, 0),
        })
    }
}

fn fill<T: Copy, const N: usize>(room: &mut Room<T, N>, value: T) -> &mut [T] {
    let start = room.as_mut_ptr().cast::<T>();
    for i in 0..N {
        // SAFETY: the array has N elements.
        unsafe { start.add(i).write(value) };
    }
    // SAFETY: all elements have just been written.
    unsafe { room.assume_init_mut() }
}
