//! Counts cycles of the core with SysTick, which every Cortex-M has.
#![allow(unsafe_code)]

const CSR: *mut u32 = 0xe000_e010 as *mut u32; // control and status
const RVR: *mut u32 = 0xe000_e014 as *mut u32; // reload value
const CVR: *mut u32 = 0xe000_e018 as *mut u32; // current value, counting down
const MASK: u32 = 0x00ff_ffff; // 24 bits

/// A running count.
pub struct Clock {
    last: u32,
    cycles: u64,
}

impl Clock {
    /// Starts counting from 0.
    pub fn start() -> Clock {
        // SAFETY: registers of the core, which nothing else here touches.
        unsafe {
            RVR.write_volatile(MASK);
            CVR.write_volatile(0);
            CSR.write_volatile(0b101); // on, core clock, no interrupt
        }
        Clock { last: now(), cycles: 0 }
    }

    /// Cycles so far. To be called at least every 2^24 cycles, since the counter has no more bits.
    pub fn cycles(&mut self) -> u64 {
        let now = now();
        self.cycles += u64::from(self.last.wrapping_sub(now) & MASK);
        self.last = now;
        self.cycles
    }
}

fn now() -> u32 {
    // SAFETY: as in `start`.
    unsafe { CVR.read_volatile() }
}
