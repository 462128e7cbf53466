//! Arm's MPS3 board with the AN547 image (Corstone-300, Cortex-M55), as in QEMU.

use infer_core::Kernels;

#[path = "../cmsdk.rs"]
mod cmsdk;
pub use cmsdk::{exit, init, read, write};

const UART: usize = 0x4930_3000;

/// Name of the board.
pub const NAME: &str = "mps3-an547";

/// Cycles per second of the core.
pub const CLOCK_HZ: u32 = 32_000_000;

/// The fastest kernels of the core.
pub const fn kernels() -> Kernels {
    // SAFETY: the board has a Cortex-M55 with Helium, which cortex-m-rt switches on together with
    // the FPU.
    unsafe { Kernels::helium() }
}

/// Called after each layer, between the parts of large matrices, and by every loop that waits.
pub fn feed_watchdog() {}
