//! UART 0 of the MPS2+ board: a CMSDK APB UART, transmitting only.
//!
//! On your board, this is the file to replace.
#![allow(unsafe_code)]

const DATA: *mut u32 = 0x4000_4000 as *mut u32;
const STATE: *const u32 = 0x4000_4004 as *const u32; // bit 0: the transmit buffer is full
const CTRL: *mut u32 = 0x4000_4008 as *mut u32; // bit 0: transmitter on
const BAUDDIV: *mut u32 = 0x4000_4010 as *mut u32; // clock cycles per bit, at least 16

/// Switches the transmitter on.
pub fn enable() {
    // SAFETY: the addresses are device registers of this board, aligned and outside all memory that Rust knows.
    unsafe {
        BAUDDIV.write_volatile(217); // 25 MHz / 115,200
        CTRL.write_volatile(1);
    }
}

/// Sends one byte, and waits for room if need be.
pub fn write(byte: u8) {
    // SAFETY: as in `enable`.
    unsafe {
        while STATE.read_volatile() & 1 != 0 {}
        DATA.write_volatile(u32::from(byte));
    }
}

/// Sends a text.
pub fn print(text: &str) {
    text.bytes().for_each(write);
}
