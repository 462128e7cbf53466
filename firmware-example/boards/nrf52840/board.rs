//! Nordic nRF52840 with the UART of its DK: P0.06 sends and P0.08 receives, by USB through the DK's
//! debugger.
//!
//! The code follows the product specification; it has not been run on the chip. EDIT 2: the pins of
//! your board.

use infer_core::Kernels;

const TX_PIN: u32 = 6; // P0.06
const RX_PIN: u32 = 8; // P0.08

const HFCLKSTART: *mut u32 = 0x4000_0000 as *mut u32; // task: start the crystal oscillator
const HFCLKSTARTED: *mut u32 = 0x4000_0100 as *mut u32; // event
const STARTRX: *mut u32 = 0x4000_2000 as *mut u32;
const STARTTX: *mut u32 = 0x4000_2008 as *mut u32;
const RXDRDY: *mut u32 = 0x4000_2108 as *mut u32; // event: a byte has come in
const TXDRDY: *mut u32 = 0x4000_211c as *mut u32; // event: a byte has gone out
const ENABLE: *mut u32 = 0x4000_2500 as *mut u32;
const PSEL_TXD: *mut u32 = 0x4000_250c as *mut u32;
const PSEL_RXD: *mut u32 = 0x4000_2514 as *mut u32;
const RXD: *const u32 = 0x4000_2518 as *const u32;
const TXD: *mut u32 = 0x4000_251c as *mut u32;
const BAUDRATE: *mut u32 = 0x4000_2524 as *mut u32;
const OUTSET: *mut u32 = 0x5000_0508 as *mut u32; // port 0
const DIRSET: *mut u32 = 0x5000_0518 as *mut u32;

/// Name of the board.
pub const NAME: &str = "nrf52840";

/// The fastest kernels of the core.
pub const fn kernels() -> Kernels {
    Kernels::native()
}

/// Cycles per second of the core.
pub const CLOCK_HZ: u32 = 64_000_000;

/// Sets up clocks, pins and the serial line.
pub fn init() {
    // SAFETY: the addresses are device registers of this chip, aligned and outside all memory that
    // Rust knows.
    unsafe {
        HFCLKSTART.write_volatile(1); // the internal oscillator is too inexact for a UART
        while HFCLKSTARTED.read_volatile() == 0 {}
        OUTSET.write_volatile(1 << TX_PIN);
        DIRSET.write_volatile(1 << TX_PIN);
        PSEL_TXD.write_volatile(TX_PIN);
        PSEL_RXD.write_volatile(RX_PIN);
        BAUDRATE.write_volatile(0x01d7_e000); // 115,200
        ENABLE.write_volatile(4);
        STARTTX.write_volatile(1);
        STARTRX.write_volatile(1);
    }
}

/// Takes the byte that the serial line has received, if there is one.
pub fn read() -> Option<u8> {
    // SAFETY: as in `init`.
    unsafe {
        (RXDRDY.read_volatile() != 0).then(|| {
            RXDRDY.write_volatile(0);
            RXD.read_volatile() as u8
        })
    }
}

/// Sends one byte, and waits until it has gone.
pub fn write(byte: u8) {
    // SAFETY: as in `init`.
    unsafe {
        TXDRDY.write_volatile(0);
        TXD.write_volatile(u32::from(byte));
        while TXDRDY.read_volatile() == 0 {}
    }
}

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
