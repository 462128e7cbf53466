//! Measures the stack in use: cortex-m-rt paints the stack at the start (feature `paint-stack`),
//! and words that have lost their paint were used.
#![allow(unsafe_code)]

use cortex_m_rt::STACK_PAINT_VALUE;

use crate::board;

unsafe extern "C" {
    // cortex-m-rt's linker script defines both: the lowest address of the stack, and the address
    // above its highest.
    static _stack_end: u32;
    static _stack_start: u32;
}

/// Bytes between the statics and the top of the stack.
pub fn size() -> usize {
    (&raw const _stack_start).addr() - (&raw const _stack_end).addr()
}

/// The most bytes that have been in use at once.
pub fn used() -> usize {
    let words = size() / 4;
    let end = &raw const _stack_end;
    let is_painted = |&i: &usize| {
        if i.is_multiple_of(4096) {
            board::feed_watchdog(); // a large RAM takes long to walk
        }
        // SAFETY: the word lies between the two symbols, in RAM. The read is volatile, since this
        // function's own frame is among the words.
        unsafe { end.add(i).read_volatile() == STACK_PAINT_VALUE }
    };
    4 * (words - (0..words).take_while(is_painted).count())
}
