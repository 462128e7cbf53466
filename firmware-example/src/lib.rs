//! infer-core on a Cortex-M: no operating system, no heap, no panic. All images use this library.
#![no_std]

// The board that BOARD names: `boards/BOARD/board.rs`.
include!(concat!(env!("OUT_DIR"), "/board.rs"));
pub mod clock;
pub mod explain;
pub mod image;
pub mod print;
pub mod random;
pub mod settings;
pub mod stack;
pub mod story;

use core::num::NonZeroUsize;

use cortex_m_rt::{ExceptionFrame, exception};
use infer_core::{Engine, Runner};

/// The fastest kernels of the board's core. Feeds the watchdog between the parts of large matrices.
pub fn engine() -> Engine<'static> {
    Engine::new(board::kernels(), &OneCore)
}

/// The most multiplications without feeding the watchdog, rounded up to blocks of eight rows.
/// Attention is not cut.
const MAX_WORK: usize = 1 << 18;

struct OneCore;

// SAFETY: `run` calls the task once for each index, one after the other, and then returns.
#[allow(unsafe_code)]
unsafe impl Runner for OneCore {
    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::MAX // as many tasks as there is work for
    }

    fn min_work(&self) -> usize {
        MAX_WORK / 2 // less than two of these are one task
    }

    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        for i in 0..n {
            task(i);
            board::feed_watchdog();
        }
    }
}

/// Resets the chip.
#[allow(unsafe_code)]
pub fn reset() -> ! {
    const AIRCR: *mut u32 = 0xe000_ed0c as *mut u32; // of every Cortex-M: the key, and SYSRESETREQ
    // SAFETY: this register resets the core, and no code runs after the write.
    unsafe { AIRCR.write_volatile(0x05fa_0004) };
    loop {}
}

/// Ends the image on a fault, such as a bus error from flash that does not answer.
#[exception]
#[allow(unsafe_code)]
unsafe fn HardFault(_: &ExceptionFrame) -> ! {
    board::exit(false)
}

/// The linker drops this function unless some code can panic, and ci.sh panics then fails.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    board::exit(false)
}
