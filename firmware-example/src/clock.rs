//! Counts cycles of the core with SysTick, which every Cortex-M has. An interrupt counts how often
//! its 24 bits wrap.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cortex_m_rt::exception;

const CSR: *mut u32 = 0xe000_e010 as *mut u32; // control and status
const RVR: *mut u32 = 0xe000_e014 as *mut u32; // reload value
const CVR: *mut u32 = 0xe000_e018 as *mut u32; // current value, counting down
const ICSR: *const u32 = 0xe000_ed04 as *const u32; // interrupt control and state
const PENDING: u32 = 1 << 26; // of ICSR: the interrupt has not been served yet
const MASK: u32 = 0x00ff_ffff; // 24 bits

static WRAPS: AtomicU32 = AtomicU32::new(0);

#[exception]
fn SysTick() {
    WRAPS.store(WRAPS.load(Relaxed).wrapping_add(1), Relaxed);
}

/// A running count.
pub struct Clock {
    start: u64,
}

impl Clock {
    /// Starts counting from 0.
    pub fn start() -> Clock {
        // SAFETY: these are registers of the core, which no other code of the image touches.
        unsafe {
            RVR.write_volatile(MASK);
            CVR.write_volatile(0);
            CSR.write_volatile(0b111); // on, core clock, interrupt
        }
        Clock { start: now() }
    }

    /// Cycles so far.
    pub fn cycles(&self) -> u64 {
        now().wrapping_sub(self.start)
    }
}

/// Whether this is a chip, found by the cycle counter of the debug unit DWT: Cortex-M4 and larger
/// chips have one. QEMU has none, and its clocks count instructions or the time of its host. A chip
/// without the counter (Armv6-M) counts as emulated.
pub fn is_real() -> bool {
    const DEMCR: *mut u32 = 0xe000_edfc as *mut u32; // bit 24: DWT on
    const DWT_CTRL: *mut u32 = 0xe000_1000 as *mut u32; // bit 0: counts
    const DWT_CYCCNT: *const u32 = 0xe000_1004 as *const u32;
    const DWT_LAR: *mut u32 = 0xe000_1fb0 as *mut u32; // some Cortex-M7 lock the DWT
    // SAFETY: these are registers of the core, which no other code of the image touches; on a core
    // without a DWT they read as 0.
    unsafe {
        DEMCR.write_volatile(DEMCR.read_volatile() | 1 << 24);
        DWT_LAR.write_volatile(0xc5ac_ce55);
        DWT_CTRL.write_volatile(DWT_CTRL.read_volatile() | 1);
        let before = DWT_CYCCNT.read_volatile();
        (0..8).any(|_| DWT_CYCCNT.read_volatile() != before)
    }
}

fn now() -> u64 {
    loop {
        let wraps = WRAPS.load(Relaxed);
        // SAFETY: as in `start`.
        let (count, state) = unsafe { (CVR.read_volatile(), ICSR.read_volatile()) };
        // If the counter has wrapped in between, the interrupt is pending, and the loop reads
        // again.
        if count != 0 && state & PENDING == 0 && WRAPS.load(Relaxed) == wraps {
            return u64::from(wraps) << 24 | u64::from(MASK - count);
        }
    }
}
