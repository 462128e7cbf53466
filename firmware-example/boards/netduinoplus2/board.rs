//! Netduino Plus 2 (ST STM32F405) with USART1: PA9 sends and PA10 receives. QEMU has it too, as
//! machine netduinoplus2.
//!
//! The code follows reference manual RM0090; it runs in QEMU, and has not been run on the chip.
//! EDIT 2: pins and UART of your board, and clocks if 16 MHz are not enough: the chip starts on its
//! internal oscillator, HSI, and this file leaves it there.

use infer_core::Kernels;

const RCC_AHB1ENR: *mut u32 = 0x4002_3830 as *mut u32; // bit 0: GPIO A
const RCC_APB2ENR: *mut u32 = 0x4002_3844 as *mut u32; // bit 4: USART1
const GPIOA_MODER: *mut u32 = 0x4002_0000 as *mut u32; // 2 bits per pin, 2: alternate function
const GPIOA_AFRH: *mut u32 = 0x4002_0024 as *mut u32; // 4 bits per pin from 8 on, 7: USART1
const USART1_SR: *const u32 = 0x4001_1000 as *const u32; // bit 5: byte received, 7: room to send
const USART1_DR: *mut u32 = 0x4001_1004 as *mut u32; // reading it after SR also clears an overrun
const USART1_BRR: *mut u32 = 0x4001_1008 as *mut u32; // clock cycles per bit
const USART1_CR1: *mut u32 = 0x4001_100c as *mut u32; // bits 2, 3, 13: receiver, transmitter, on

/// Name of the board.
pub const NAME: &str = "netduinoplus2";

/// The fastest kernels of the core.
pub const fn kernels() -> Kernels {
    Kernels::native()
}

/// Cycles per second of the core.
pub const CLOCK_HZ: u32 = 16_000_000;

/// Sets up clocks, pins and the serial line.
pub fn init() {
    // SAFETY: the addresses are device registers of this chip, aligned and outside all memory that
    // Rust knows.
    unsafe {
        RCC_AHB1ENR.write_volatile(RCC_AHB1ENR.read_volatile() | 1);
        RCC_APB2ENR.write_volatile(RCC_APB2ENR.read_volatile() | 1 << 4);
        let _ = RCC_APB2ENR.read_volatile(); // the clocks are on after a read
        GPIOA_AFRH.write_volatile(GPIOA_AFRH.read_volatile() & !0xff0 | 0x770);
        GPIOA_MODER.write_volatile(GPIOA_MODER.read_volatile() & !(0xf << 18) | 0xa << 18);
        USART1_BRR.write_volatile(CLOCK_HZ / 115_200);
        USART1_CR1.write_volatile(1 << 13 | 1 << 3 | 1 << 2);
    }
}

/// Takes the byte that the serial line has received, if there is one.
pub fn read() -> Option<u8> {
    // SAFETY: as in `init`.
    unsafe { (USART1_SR.read_volatile() & 1 << 5 != 0).then(|| USART1_DR.read_volatile() as u8) }
}

/// Sends one byte. Waits until the transmitter has room for it.
pub fn write(byte: u8) {
    // SAFETY: as in `init`.
    unsafe {
        while USART1_SR.read_volatile() & 1 << 7 == 0 {}
        USART1_DR.write_volatile(u32::from(byte));
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
