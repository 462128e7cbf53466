//! Tells a story in static memory alone, as firmware does:
//! `cargo run -p infer-core --example no_heap`.
//!
//! Model and tokenizer stay where the linker puts them, every buffer has the size that the plan
//! counted at compile time, and the index of the tokenizer is built then, too. A model that does
//! not run within the limits is a compile error.

use std::io::{Write, stdout};
use std::sync::Mutex;

use infer_core::{
    Aligned, BOS, Config, Engine, Error, HASH_START, HotBuffers, IndexEntry, KvBuffers, KvType, Limits, MergeSlot,
    Model, Plan, ProbIndex, Sampler, State, Tokenizer, build_index, classify, forward, hash_logits,
};

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/firmware/model.bin"));
static TOKENIZER: &[u8] = include_bytes!("../../models/firmware/tokenizer.bin");

const PLAN: Plan = match Config::from_header(include_bytes!("../../models/firmware/model.bin")) {
    Ok(config) => match config.plan(Limits::new(200).with_kv(KvType::Q8)) {
        Ok(plan) => plan,
        Err(_) => panic!("the model does not run within these limits"),
    },
    Err(_) => panic!("this is no model"),
};

static INDEX: [IndexEntry; PLAN.tokenizer] = {
    let mut index = [IndexEntry::EMPTY; PLAN.tokenizer];
    assert!(build_index(TOKENIZER, PLAN.tokenizer, &mut index).is_ok(), "this is no tokenizer of the model");
    index
};

/// The memory that is written. On a chip, each buffer may lie in the memory that suits it.
struct Memory {
    hot_f32: [f32; PLAN.hot_f32],
    hot_i8: [i8; PLAN.hot_i8],
    kv_values: [i8; PLAN.kv_values],
    kv_scales: [f32; PLAN.kv_scales],
    candidates: [ProbIndex; PLAN.sampler],
}

/// The lock makes the static safe to write; firmware takes a cell that is taken once.
static MEMORY: Mutex<Memory> = Mutex::new(Memory {
    hot_f32: [0.0; PLAN.hot_f32],
    hot_i8: [0; PLAN.hot_i8],
    kv_values: [0; PLAN.kv_values],
    kv_scales: [0.0; PLAN.kv_scales],
    candidates: [ProbIndex { prob: 0.0, index: 0 }; PLAN.sampler],
});

fn main() -> Result<(), Error> {
    let Ok(mut memory) = MEMORY.lock() else { return Ok(()) };
    println!(
        "{} bytes of RAM, {} of flash",
        size_of::<Memory>(),
        MODEL.0.len() + TOKENIZER.len() + size_of_val(&INDEX)
    );
    let hash = tell("Once upon a time", &mut memory)?;
    println!("\nlogits hash {hash:016x}: the same on every machine");
    Ok(())
}

/// Tells a story and returns the hash of all logits that it was sampled from.
fn tell(prompt: &str, memory: &mut Memory) -> Result<u64, Error> {
    let Memory { hot_f32, hot_i8, kv_values, kv_scales, candidates } = memory;
    let model = Model::from_bytes(&MODEL.0)?;
    let kv = KvBuffers::Q8 { values: kv_values, scales: kv_scales };
    let mut state = State::new(&PLAN, HotBuffers { f32: hot_f32, i8: hot_i8 }, kv)?;
    let tokenizer = Tokenizer::with_index(TOKENIZER, &INDEX);
    let mut tokens = [0; 64];
    let n = tokenizer.encode(prompt, true, &mut [MergeSlot::EMPTY; 64], &mut tokens)?;

    let engine = Engine::native();
    let mut sampler = Sampler::new(1.0, 0.9, 42)?; // temperature, top-p, seed
    let (mut token, mut hash) = (BOS, HASH_START);
    for pos in 0..PLAN.limits.max_seq {
        forward(&model, &mut state, &engine, &[token])?;
        let next = match tokens[..n].get(pos + 1) {
            Some(&prompt) => prompt,
            None => {
                let logits = classify(&model, &mut state, &engine, 0)?;
                hash = hash_logits(hash, logits);
                sampler.sample(logits, candidates)?
            }
        };
        if next == BOS {
            break;
        }
        let _ = stdout().write_all(tokenizer.decode(token, next)?); // a display may fail, too
        token = next;
    }
    Ok(hash)
}
