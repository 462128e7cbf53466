//! How much stack was used: cortex-m-rt paints it at the start (feature `paint-stack`), and what is
//! not painted any more was used.
#![allow(unsafe_code)]

use cortex_m_rt::STACK_PAINT_VALUE;

use crate::board;

unsafe extern "C" {
    // cortex-m-rt's linker script defines them: the lowest address of the stack, and the one above
    // the highest.
    static _stack_end: u32;
    static _stack_start: u32;
}

/// Bytes between the statics and the top of the stack.
pub fn size() -> usize {
    (&raw const _stack_start).addr() - (&raw const _stack_end).addr()
}

/// Most bytes that were in use at a time so far.
pub fn used() -> usize {
    let words = size() / 4;
    let end = &raw const _stack_end;
    let is_painted = |&i: &usize| {
        if i.is_multiple_of(4096) {
            board::feed_watchdog(); // the rest of a large RAM is a long way
        }
        // SAFETY: reads words between the two symbols, all of them RAM, and as volatile, since this
        // function's own frame is among them.
        unsafe { end.add(i).read_volatile() == STACK_PAINT_VALUE }
    };
    4 * (words - (0..words).take_while(is_painted).count())
}
