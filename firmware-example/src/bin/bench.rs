//! Instructions per token, for QEMU with `-icount shift=0`: one instruction then takes 1 ns of the emulated time, so a
//! cycle of a clock of f Hz stands for 10^9 / f instructions. 64 greedy tokens from BOS.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use firmware_example::clock::Clock;
use firmware_example::image::{self, PLAN};
use firmware_example::{board, engine, print};
use infer_core::{
    BOS, Error, HASH_START, HotBuffers, KvBuffers, Model, Sampler, State, classify, forward, hash_logits,
};

const TOKENS: usize = 64;

#[entry]
fn main() -> ! {
    board::init();
    let mut thousands = [0; TOKENS];
    let result = run(&mut thousands);
    if let Ok(hash) = result {
        for (name, value) in [
            ("mean", thousands.iter().sum::<u64>() / TOKENS as u64),
            ("position 0", thousands[0]),
            ("position 63", thousands[TOKENS - 1]),
        ] {
            print::text("thousand instructions per token, ");
            print::text(name);
            print::text(": ");
            print::number(value);
            print::text("\n");
        }
        print::text("kernels ");
        print::text(engine().kernels.name);
        print::text(", logits hash ");
        print::hash(hash);
        print::text("\n");
    } else {
        print::text("error: the model or a buffer was refused\n");
    }
    board::exit(result.is_ok())
}

/// Fills in the thousands of instructions of each token; returns the hash of all logits.
fn run(thousands: &mut [u64; TOKENS]) -> Result<u64, Error> {
    let memory = image::memory().ok_or(Error::NotReady)?;
    let engine = engine();
    let model = Model::from_bytes(image::model())?;
    let hot = HotBuffers { f32: memory.hot_f32, i8: memory.hot_i8 };
    let mut state = State::new(&PLAN, hot, KvBuffers::F32(memory.kv))?;
    let mut sampler = Sampler::new(0.0, 0.0, 1)?;
    let mut clock = Clock::start();
    let (mut token, mut hash) = (BOS, HASH_START);
    for (pos, thousands) in thousands.iter_mut().enumerate() {
        let start = clock.cycles();
        forward(&model, &mut state, &engine, &[token], pos)?;
        let logits = classify(&model, &mut state, &engine, 0)?;
        token = sampler.sample(logits, &mut [])?;
        let cycles = clock.cycles() - start;
        *thousands = cycles * 1_000_000 / u64::from(board::CLOCK_HZ);
        hash = hash_logits(hash, logits);
    }
    Ok(hash)
}
