//! Counts cycles of the core with SysTick, which every Cortex-M has. An interrupt counts how often its 24 bits wrap.
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
        // SAFETY: registers of the core, which nothing else here touches.
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

fn now() -> u64 {
    loop {
        let wraps = WRAPS.load(Relaxed);
        // SAFETY: as in `start`.
        let (count, state) = unsafe { (CVR.read_volatile(), ICSR.read_volatile()) };
        // Again if it has wrapped in between: at 0, which asks for the interrupt.
        if count != 0 && state & PENDING == 0 && WRAPS.load(Relaxed) == wraps {
            return u64::from(wraps) << 24 | u64::from(MASK - count);
        }
    }
}
