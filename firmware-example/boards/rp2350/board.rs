//! Raspberry Pi RP2350, core 0 of the Arm kind. EDIT 2: the serial line is yours to add, from
//! rp235x-hal or your own.
//!
//! The image links and starts; without a UART it says nothing.

use infer_core::Kernels;

/// Name of the board.
pub const NAME: &str = "rp2350";

/// The fastest kernels of the core.
pub const fn kernels() -> Kernels {
    // SAFETY: its Cortex-M33 has the DSP extension (RP2350 datasheet, "Cortex-M33 processor").
    unsafe { Kernels::cortex_m_dsp() }
}

/// Cycles per second of the core. EDIT 2: the frequency that your clock set-up gives (150 MHz with
/// the PLL and a 12 MHz crystal).
pub const CLOCK_HZ: u32 = 150_000_000;

/// EDIT 2. Set up clocks (crystal, PLL), resets of IO bank, pads and UART 0, and pins 0 and 1 here.
pub fn init() {}

/// EDIT 2. Takes the byte that the serial line has received, if there is one.
pub fn read() -> Option<u8> {
    core::hint::black_box(None) // without the box, the compiler drops all code that serves requests
}

/// EDIT 2. Sends one byte. Waits until the transmitter has room for it.
pub fn write(_byte: u8) {}

/// EDIT 2. Called after each layer, between the parts of large matrices, and by every loop that
/// waits: feed the watchdog here, once you have switched it on.
pub fn feed_watchdog() {}

/// Called after the last story, and when the image cannot go on.
pub fn exit(success: bool) -> ! {
    if !success {
        crate::reset();
    }
    loop {
        feed_watchdog();
    }
}
