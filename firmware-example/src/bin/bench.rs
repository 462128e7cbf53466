//! Counts instructions per token in QEMU with `-icount shift=0`. One instruction then takes 1 ns of
//! emulated time, so a cycle of a clock of f Hz stands for 10^9 / f instructions. The tokens are
//! greedy ones from BOS on.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use firmware_example::clock::Clock;
use firmware_example::image::{self, BENCH_HASH, PLAN};
use firmware_example::{board, engine, print, settings, story};

// As many positions as the build script ran for the hash.
const TOKENS: usize = {
    let max_seq = PLAN.limits.max_seq;
    if settings::BENCH_TOKENS < max_seq { settings::BENCH_TOKENS } else { max_seq }
};

#[entry]
fn main() -> ! {
    board::init();
    board::exit(run().is_some())
}

fn run() -> Option<()> {
    let mut memory = image::memory()?;
    let engine = engine();
    let mut cycles = [0; TOKENS];
    let clock = Clock::start();
    // The call before a token subtracts the time, the call after it adds: the hash between two
    // tokens does not count.
    let lap = |pos: usize| {
        if let Some(cycles) = cycles.get_mut(pos) {
            *cycles = clock.cycles().wrapping_sub(*cycles);
        }
    };
    let ran = memory.lend().and_then(|(state, _)| story::greedy(image::model(), &engine, state, TOKENS, lap));
    match ran {
        Ok(hash) => {
            let thousand = |cycles: u64| cycles * 1_000_000 / u64::from(board::CLOCK_HZ);
            print::text("thousand instructions per token: ");
            print::number(thousand(cycles.iter().sum::<u64>() / TOKENS as u64));
            print::text(" mean of ");
            print::number(TOKENS as u64);
            print::text(", ");
            print::number(thousand(cycles.first().copied().unwrap_or(0)));
            print::text(" first, ");
            print::number(thousand(cycles.last().copied().unwrap_or(0)));
            print::text(" last; kernels ");
            print::text(engine.kernels.name);
            print::logits(hash, BENCH_HASH)
        }
        Err(error) => {
            print::error(&error);
            None
        }
    }
}
