//! infer-core on a Cortex-M4F, without operating system, heap or panics: tells a story with each of two models that lie
//! in flash, and compares the logits with the host's.
//!
//! The models have random weights, so the story is noise. What counts is that it is the same noise everywhere.
#![no_std]
#![no_main]

mod story;
mod uart;

use core::hint::black_box;

use cortex_m_rt::entry;
use cortex_m_semihosting::debug;
use infer_core::{Aligned, Config, IndexEntry, MergeSlot, Plan, ProbIndex, Tokenizer, build_index};

use crate::story::{LIMITS, MAX_PROMPT_TOKENS, Memory, PROMPT};

static F32_MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/f32.bin")));
static INT8_MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/int8.bin")));
static TOKENIZER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tokenizer.bin"));
const F32_HASH: u64 = u64::from_le_bytes(*include_bytes!(concat!(env!("OUT_DIR"), "/f32.hash")));
const INT8_HASH: u64 = u64::from_le_bytes(*include_bytes!(concat!(env!("OUT_DIR"), "/int8.hash")));

// A model or tokenizer that does not fit is an error of the build.
const F32_PLAN: Plan = plan(&F32_MODEL.0);
const INT8_PLAN: Plan = plan(&INT8_MODEL.0);
const VOCAB_SIZE: usize = F32_PLAN.config.vocab_size;
const _: () = assert!(INT8_PLAN.config.vocab_size == VOCAB_SIZE, "one tokenizer serves both models");

/// Built by the compiler, so it takes flash and no RAM.
static INDEX: [IndexEntry; VOCAB_SIZE] = {
    let mut index = [IndexEntry::EMPTY; VOCAB_SIZE];
    assert!(build_index(TOKENIZER, VOCAB_SIZE, &mut index).is_ok(), "tokenizer.bin is damaged");
    index
};

// The models run one after the other and share their memory.
const HOT_F32: usize = max(F32_PLAN.hot_f32, INT8_PLAN.hot_f32);
const HOT_I8: usize = max(F32_PLAN.hot_i8, INT8_PLAN.hot_i8);
const KV_VALUES: usize = max(F32_PLAN.kv_values, INT8_PLAN.kv_values);

const fn plan(model: &[u8]) -> Plan {
    let Ok(config) = Config::from_header(model) else { panic!("not a model file") };
    let Ok(plan) = config.plan(LIMITS) else { panic!("the model does not run within these limits") };
    plan
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

#[entry]
fn main() -> ! {
    // The entry macro hands these out as mutable references, once.
    static mut HOT_F32_BUFFER: [f32; HOT_F32] = [0.0; HOT_F32];
    static mut HOT_I8_BUFFER: [i8; HOT_I8] = [0; HOT_I8];
    static mut KV_CACHE: [f32; KV_VALUES] = [0.0; KV_VALUES];
    static mut CANDIDATES: [ProbIndex; VOCAB_SIZE] = [ProbIndex { prob: 0.0, index: 0 }; VOCAB_SIZE];
    static mut MERGE: [MergeSlot; MAX_PROMPT_TOKENS] = [MergeSlot::EMPTY; MAX_PROMPT_TOKENS];
    static mut TOKENS: [u32; MAX_PROMPT_TOKENS] = [0; MAX_PROMPT_TOKENS];

    uart::enable();
    let mut same = true;
    for (name, model, plan, expected) in
        [("f32", F32_MODEL, F32_PLAN, F32_HASH), ("int8", INT8_MODEL, INT8_PLAN, INT8_HASH)]
    {
        // Everything is known at compile time here. The boxes keep the compiler from running, or pruning, any of it.
        let (model, plan, prompt) = (black_box(&model.0), black_box(&plan), black_box(PROMPT));
        let tokenizer = Tokenizer::with_index(black_box(TOKENIZER), black_box(&INDEX));
        let memory = Memory {
            hot_f32: HOT_F32_BUFFER,
            hot_i8: HOT_I8_BUFFER,
            kv: KV_CACHE,
            candidates: CANDIDATES,
            merge: MERGE,
            tokens: TOKENS,
        };
        uart::print(name);
        uart::print(": ");
        match story::tell(model, plan, &tokenizer, prompt, memory, write_text) {
            Ok(hash) => {
                uart::print("\nlogits ");
                print_hex(hash);
                uart::print(if hash == expected { ", as on the host\n" } else { ", NOT as on the host\n" });
                same &= hash == expected;
            }
            Err(_) => {
                uart::print("\nerror: the model, the tokenizer or a buffer was refused\n");
                same = false;
            }
        }
    }
    uart::print(if same { "firmware-example: passed\n" } else { "firmware-example: FAILED\n" });
    debug::exit(if same { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {}
}

/// Random weights give any byte: those that could drive a terminal become dots.
fn write_text(text: &[u8]) {
    text.iter().for_each(|&byte| uart::write(if matches!(byte, b' '..=b'~') { byte } else { b'.' }));
}

fn print_hex(value: u64) {
    for byte in value.to_be_bytes() {
        for digit in [byte >> 4, byte & 15] {
            uart::write(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
    }
}

/// Never linked: the symbol check fails when something could panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
