//! Arm's MPS2 board with the AN386 image, as in QEMU.

use infer_core::Kernels;

#[path = "../cmsdk.rs"]
mod cmsdk;
pub use cmsdk::{exit, read, write};

const UART: usize = 0x4000_4000;
const WATCHDOG_LOAD: *mut u32 = 0x4000_8000 as *mut u32; // cycles to an NMI, and from there to a reset
const WATCHDOG_CTRL: *mut u32 = 0x4000_8008 as *mut u32; // bit 0: on, bit 1: resets
const WATCHDOG_INTCLR: *mut u32 = 0x4000_800c as *mut u32; // a write starts it anew

/// Cycles of the watchdog, which is off unless WATCHDOG_CYCLES is set when the image is built:
/// without `-icount`, QEMU's clock runs on while the emulation is slow.
const WATCHDOG_CYCLES: Option<u32> = match option_env!("WATCHDOG_CYCLES") {
    None => None,
    Some(cycles) => match u32::from_str_radix(cycles, 10) {
        Ok(cycles) => Some(cycles),
        Err(_) => panic!("WATCHDOG_CYCLES is no number of cycles"),
    },
};

/// Name of the board.
pub const NAME: &str = "mps2-an386";

/// Cycles per second of the core.
pub const CLOCK_HZ: u32 = 25_000_000;

/// The fastest kernels of the core.
pub const fn kernels() -> Kernels {
    Kernels::native()
}

/// Switches on the serial line and the watchdog.
pub fn init() {
    cmsdk::init();
    if let Some(cycles) = WATCHDOG_CYCLES {
        // SAFETY: the addresses are device registers of this board, aligned and outside all memory
        // that Rust knows.
        unsafe {
            WATCHDOG_LOAD.write_volatile(cycles);
            WATCHDOG_CTRL.write_volatile(3);
        }
    }
}

/// Called after each layer, between the parts of large matrices, and by every loop that waits.
pub fn feed_watchdog() {
    if WATCHDOG_CYCLES.is_some() {
        // SAFETY: as in `init`.
        unsafe { WATCHDOG_INTCLR.write_volatile(1) };
    }
}
