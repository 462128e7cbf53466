//! Arm's MPS2 board with the AN386 image, as in QEMU: UART 0, a CMSDK APB UART.

use infer_core::Kernels;

const DATA: *mut u32 = 0x4000_4000 as *mut u32;
const STATE: *const u32 = 0x4000_4004 as *const u32; // bit 0: transmit buffer full, bit 1: receive buffer full
const CTRL: *mut u32 = 0x4000_4008 as *mut u32; // bit 0: transmitter on, bit 1: receiver on
const BAUDDIV: *mut u32 = 0x4000_4010 as *mut u32; // clock cycles per bit, at least 16

/// Name of the board.
pub const NAME: &str = "mps2-an386";

/// The fastest kernels of the core.
pub const fn kernels() -> Kernels {
    Kernels::native()
}
/// Cycles per second of the core.
pub const CLOCK_HZ: u32 = 25_000_000;

/// Clocks, pins and the serial line.
pub fn init() {
    // SAFETY: the addresses are device registers of this board, aligned and outside all memory that Rust knows.
    unsafe {
        BAUDDIV.write_volatile(CLOCK_HZ / 115_200);
        CTRL.write_volatile(3);
    }
}

/// The byte that has come in over the serial line, if any.
pub fn read() -> Option<u8> {
    // SAFETY: as in `init`.
    unsafe { (STATE.read_volatile() & 2 != 0).then(|| DATA.read_volatile() as u8) }
}

/// Sends one byte, and waits for room if need be.
pub fn write(byte: u8) {
    // SAFETY: as in `init`.
    unsafe {
        while STATE.read_volatile() & 1 != 0 {}
        DATA.write_volatile(u32::from(byte));
    }
}

/// Called between layers, by every loop that waits, and so at least every few milliseconds.
pub fn feed_watchdog() {}

/// Ends the emulation.
pub fn exit(success: bool) -> ! {
    use cortex_m_semihosting::debug;
    debug::exit(if success { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {}
}
