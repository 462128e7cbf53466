//! Code shared by the boards in QEMU: UART 0, a CMSDK APB UART at `UART`, and the end of the
//! emulation.

use super::{CLOCK_HZ, UART};

const DATA: *mut u32 = UART as *mut u32;
const STATE: *const u32 = (UART + 4) as *const u32; // bit 0: transmit buffer full, bit 1: receive buffer full
const CTRL: *mut u32 = (UART + 8) as *mut u32; // bit 0: transmitter on, bit 1: receiver on
const BAUDDIV: *mut u32 = (UART + 16) as *mut u32; // clock cycles per bit, at least 16

/// Switches on the serial line.
pub fn init() {
    // SAFETY: the addresses are device registers of the board, aligned and outside all memory that
    // Rust knows.
    unsafe {
        BAUDDIV.write_volatile(CLOCK_HZ / 115_200);
        CTRL.write_volatile(3);
    }
}

/// Takes the byte that the serial line has received, if there is one.
pub fn read() -> Option<u8> {
    // SAFETY: as in `init`.
    unsafe { (STATE.read_volatile() & 2 != 0).then(|| DATA.read_volatile() as u8) }
}

/// Sends one byte. Waits until the transmitter has room for it.
pub fn write(byte: u8) {
    // SAFETY: as in `init`.
    unsafe {
        while STATE.read_volatile() & 1 != 0 {}
        DATA.write_volatile(u32::from(byte));
    }
}

/// Ends the emulation.
pub fn exit(success: bool) -> ! {
    use cortex_m_semihosting::debug;
    debug::exit(if success { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    loop {}
}
