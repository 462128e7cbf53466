//! infer-core on a Cortex-M: no operating system, no heap, no panic. The images share what is here.
#![no_std]

// The board that BOARD names: `boards/BOARD/board.rs`.
include!(concat!(env!("OUT_DIR"), "/board.rs"));
pub mod clock;
pub mod image;
pub mod print;
pub mod settings;
pub mod story;

use infer_core::Engine;

/// The fastest kernels of the board's core.
pub fn engine() -> Engine<'static> {
    Engine::native()
}

/// Never linked where the symbol check holds: it fails when something could panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    board::exit(false)
}
