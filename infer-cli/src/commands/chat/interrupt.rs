//! Ctrl-C in a chat.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether Ctrl-C stops an answer, not the program.
static STOPS_ANSWERS: AtomicBool = AtomicBool::new(false);
/// Whether the person asked for the end of the answer.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Handles Ctrl-C: ends the answer that is being written. Returns false when the program should end
/// instead.
pub fn stop() -> bool {
    let stops_answers = STOPS_ANSWERS.load(Relaxed);
    STOPPED.store(stops_answers, Relaxed);
    stops_answers
}

/// Lets Ctrl-C stop an answer from now on, or the program.
pub fn stops_answers(yes: bool) {
    STOPS_ANSWERS.store(yes, Relaxed);
}

/// Whether the answer that is being written should end.
pub fn stopped() -> bool {
    STOPPED.load(Relaxed)
}

/// Forgets an earlier Ctrl-C.
pub fn begin() {
    STOPPED.store(false, Relaxed);
}
