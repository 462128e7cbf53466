//! ST STM32H743 with USART3 of the NUCLEO-H743ZI: PD8 sends and PD9 receives, by USB through the
//! ST-LINK.
//!
//! The code follows reference manual RM0433; it has not been run on the chip. EDIT 2: pins and UART
//! of your board, and clocks if 64 MHz are not enough: the chip starts on its internal oscillator,
//! HSI, and this file leaves it there.

use infer_core::Kernels;

const RCC_AHB4ENR: *mut u32 = 0x5802_44e0 as *mut u32; // bit 3: GPIO D
const RCC_APB1LENR: *mut u32 = 0x5802_44e8 as *mut u32; // bit 18: USART3
const GPIOD_MODER: *mut u32 = 0x5802_0c00 as *mut u32; // 2 bits per pin, 2: alternate function
const GPIOD_AFRH: *mut u32 = 0x5802_0c24 as *mut u32; // 4 bits per pin from 8 on, 7: USART3
const USART3_CR1: *mut u32 = 0x4000_4800 as *mut u32; // bits 0, 2, 3, 29: on, receiver, transmitter, FIFOs
const USART3_BRR: *mut u32 = 0x4000_480c as *mut u32; // clock cycles per bit
const USART3_ISR: *const u32 = 0x4000_481c as *const u32; // bit 3: overrun, 5: byte received, 7: room to send
const USART3_ICR: *mut u32 = 0x4000_4820 as *mut u32; // bit 3: clears overrun
const USART3_RDR: *const u32 = 0x4000_4824 as *const u32;
const USART3_TDR: *mut u32 = 0x4000_4828 as *mut u32;

/// Name of the board.
pub const NAME: &str = "stm32h743";

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
        RCC_AHB4ENR.write_volatile(RCC_AHB4ENR.read_volatile() | 1 << 3);
        RCC_APB1LENR.write_volatile(RCC_APB1LENR.read_volatile() | 1 << 18);
        let _ = RCC_APB1LENR.read_volatile(); // the clocks are on after a read
        GPIOD_AFRH.write_volatile(GPIOD_AFRH.read_volatile() & !0xff | 0x77);
        GPIOD_MODER.write_volatile(GPIOD_MODER.read_volatile() & !(0xf << 16) | 0xa << 16);
        USART3_BRR.write_volatile(CLOCK_HZ / 115_200);
        USART3_CR1.write_volatile(1 << 29); // the FIFOs are set up while it is off
        USART3_CR1.write_volatile(1 << 29 | 1 << 3 | 1 << 2 | 1);
    }
}

/// Takes the byte that the serial line has received, if there is one.
pub fn read() -> Option<u8> {
    // SAFETY: as in `init`.
    unsafe {
        let state = USART3_ISR.read_volatile();
        if state & 1 << 3 != 0 {
            USART3_ICR.write_volatile(1 << 3); // a lost byte garbles the frame, and its CRC tells
        }
        (state & 1 << 5 != 0).then(|| USART3_RDR.read_volatile() as u8)
    }
}

/// Sends one byte. Waits until the transmitter has room for it.
pub fn write(byte: u8) {
    // SAFETY: as in `init`.
    unsafe {
        while USART3_ISR.read_volatile() & 1 << 7 == 0 {}
        USART3_TDR.write_volatile(u32::from(byte));
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
