//! The files that the image carries, and the memory of a run, which the compiler sizes from the
//! model's header.
#![allow(unsafe_code)]

use core::arch::asm;
use core::hint::black_box;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use infer_core::{
    Aligned, Config, Error, HASH_START, HotBuffers, IndexEntry, KvBuffers, KvType, MergeSlot, Plan, ProbIndex, State,
    Tokenizer, build_index, hash_bytes,
};

use crate::board;
use crate::settings::MAX_PROMPT;
use crate::story::{self, Scratch};

#[unsafe(link_section = ".model")]
static MODEL: Aligned<[u8; MODEL_LEN]> = Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/model.bin")));
#[unsafe(link_section = ".model")]
static TOKENIZER: [u8; TOKENIZER_LEN] = *include_bytes!(concat!(env!("OUT_DIR"), "/tokenizer.bin"));
const MODEL_LEN: usize = include_bytes!(concat!(env!("OUT_DIR"), "/model.bin")).len();
const TOKENIZER_LEN: usize = include_bytes!(concat!(env!("OUT_DIR"), "/tokenizer.bin")).len();

/// Hash of all logits of the story that `settings.rs` asks for. The host computed it.
pub const STORY_HASH: u64 = u64::from_le_bytes(*include_bytes!(concat!(env!("OUT_DIR"), "/story.hash")));
/// The same for `BENCH_TOKENS` greedy tokens from BOS on.
pub const BENCH_HASH: u64 = u64::from_le_bytes(*include_bytes!(concat!(env!("OUT_DIR"), "/bench.hash")));
/// Checksum of the model file.
pub const CHECKSUM: u64 = u64::from_le_bytes(*include_bytes!(concat!(env!("OUT_DIR"), "/checksum")));

// A model or tokenizer that does not fit is an error of the build.
pub const PLAN: Plan = {
    let Ok(config) = Config::from_header(&MODEL.0) else { panic!("MODEL is not a model file") };
    let Ok(plan) = config.plan(story::limits(config.seq_len)) else { panic!("MODEL does not run within the settings") };
    plan
};
const VOCAB_SIZE: usize = PLAN.config.vocab_size;
const KV_F32_VALUES: usize = match PLAN.limits.kv {
    KvType::F32 => PLAN.kv_values,
    KvType::Q8 => 0,
};
const MAX_PROMPT_TOKENS: usize = Tokenizer::max_tokens(MAX_PROMPT);

/// The tokenizer's index. The compiler builds it, so it takes flash and no RAM.
static INDEX: [IndexEntry; VOCAB_SIZE] = {
    let mut index = [IndexEntry::EMPTY; VOCAB_SIZE];
    assert!(build_index(&TOKENIZER, VOCAB_SIZE, &mut index).is_ok(), "TOKENIZER is damaged, or another model's");
    index
};

/// The model file in flash. The compiler knows its bytes; the box keeps it from relying on them,
/// since flash may be damaged.
pub fn model() -> &'static [u8] {
    black_box(&MODEL.0)
}

/// Whether the model in flash is the one that was built in.
pub fn is_intact(model: &[u8]) -> bool {
    let hash = model.chunks(4096).fold(HASH_START, |hash, bytes| {
        board::feed_watchdog();
        hash_bytes(hash, bytes)
    });
    hash == black_box(CHECKSUM)
}

/// The tokenizer in flash.
pub fn tokenizer() -> Tokenizer<'static> {
    Tokenizer::with_index(black_box(&TOKENIZER), black_box(&INDEX))
}

/// Room for elements that are written at run time, so that flash holds no copy of them.
type Room<T, const N: usize> = MaybeUninit<[T; N]>;

/// The memory of a run.
pub struct Memory {
    hot_f32: &'static mut [f32],
    hot_i8: &'static mut [i8],
    kv_f32: &'static mut [f32],
    kv_i8: &'static mut [i8],
    kv_scales: &'static mut [f32],
    scratch: Scratch<'static>,
}

impl Memory {
    /// A state without positions, and the scratch beside it.
    pub fn lend(&mut self) -> Result<(State<'_>, &mut Scratch<'static>), Error> {
        let hot = HotBuffers { f32: self.hot_f32, i8: self.hot_i8 };
        let kv = match PLAN.limits.kv {
            KvType::F32 => KvBuffers::F32(self.kv_f32),
            KvType::Q8 => KvBuffers::Q8 { values: self.kv_i8, scales: self.kv_scales },
        };
        Ok((State::new(&PLAN, hot, kv)?, &mut self.scratch))
    }
}

/// The buffers; `None` from the second call on.
pub fn memory() -> Option<Memory> {
    // sections.x places .hot and .cold in the memories that the board names for them.
    #[unsafe(link_section = ".hot.f32")]
    static mut HOT_F32: Room<f32, { PLAN.hot_f32 }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".hot.i8")]
    static mut HOT_I8: Room<i8, { PLAN.hot_i8 }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".hot.sampler")]
    static mut CANDIDATES: Room<ProbIndex, VOCAB_SIZE> = MaybeUninit::uninit();
    // Of KV_F32 and KV_I8, one has no elements: that of the type which is not in the settings.
    #[unsafe(link_section = ".cold.kv_f32")]
    static mut KV_F32: Room<f32, { KV_F32_VALUES }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".cold.kv_i8")]
    static mut KV_I8: Room<i8, { PLAN.kv_values - KV_F32_VALUES }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".cold.kv_scales")]
    static mut KV_SCALES: Room<f32, { PLAN.kv_scales }> = MaybeUninit::uninit();
    #[unsafe(link_section = ".cold.merge")]
    static mut MERGE: Room<MergeSlot, MAX_PROMPT_TOKENS> = MaybeUninit::uninit();
    #[unsafe(link_section = ".cold.tokens")]
    static mut TOKENS: Room<u32, MAX_PROMPT_TOKENS> = MaybeUninit::uninit();

    if !is_first() {
        return None;
    }
    // SAFETY: `is_first` was true, which happens once, so each static is borrowed once.
    unsafe {
        Some(Memory {
            hot_f32: fill(&mut *&raw mut HOT_F32, 0.0),
            hot_i8: fill(&mut *&raw mut HOT_I8, 0),
            kv_f32: fill(&mut *&raw mut KV_F32, 0.0),
            kv_i8: fill(&mut *&raw mut KV_I8, 0),
            kv_scales: fill(&mut *&raw mut KV_SCALES, 0.0),
            scratch: Scratch {
                candidates: fill(&mut *&raw mut CANDIDATES, ProbIndex { prob: 0.0, index: 0 }),
                merge: fill(&mut *&raw mut MERGE, MergeSlot::EMPTY),
                tokens: fill(&mut *&raw mut TOKENS, 0),
            },
        })
    }
}

/// True in the first call, false afterwards. Armv6-M cannot swap an atomic, so interrupts are
/// masked between load and store. That is enough on one core, and for privileged code, which alone
/// can mask interrupts: images and handlers are.
fn is_first() -> bool {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let masked: u32;
    // SAFETY: the instructions read PRIMASK and mask interrupts, which the block below restores.
    // They touch neither memory nor the stack.
    unsafe { asm!("mrs {}, PRIMASK", "cpsid i", out(reg) masked, options(nostack, preserves_flags)) }
    let taken = TAKEN.load(Ordering::Relaxed);
    TAKEN.store(true, Ordering::Relaxed);
    // SAFETY: the instruction restores the PRIMASK that was read above.
    unsafe { asm!("msr PRIMASK, {}", in(reg) masked, options(nostack, preserves_flags)) }
    !taken
}

fn fill<T: Copy, const N: usize>(room: &mut Room<T, N>, value: T) -> &mut [T] {
    let start = room.as_mut_ptr().cast::<T>();
    for i in 0..N {
        // SAFETY: `start` points to N elements, and i is below N.
        unsafe { start.add(i).write(value) };
    }
    // SAFETY: the loop has written all N elements.
    unsafe { room.assume_init_mut() }
}
