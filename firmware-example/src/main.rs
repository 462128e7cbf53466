//! Tells a story over the serial line, compares the logits with the host's, then continues the
//! lines that are typed. An empty line ends it.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use firmware_example::image::{self, Memory, STORY_HASH};
use firmware_example::settings::{MAX_PROMPT, PROMPT};
use firmware_example::story::{self, Listener, Request, Summary};
use firmware_example::{board, engine, print, stack};

#[entry]
fn main() -> ! {
    board::init();
    board::exit(run().is_some())
}

fn run() -> Option<()> {
    if !image::is_intact(image::model()) {
        print::text("error: the model in flash is damaged, flash it again\n");
        return None;
    }
    let mut memory = image::memory()?;
    let summary = tell(PROMPT, &mut memory)?;
    print::logits(summary.hash, STORY_HASH)?;
    print::text("stack: ");
    print::number(stack::used() as u64);
    print::text(" bytes used of ");
    print::number(stack::size() as u64);
    print::text("\n");

    let mut line = [0; MAX_PROMPT];
    loop {
        print::text("\nA beginning, or an empty line to end: ");
        match read_line(&mut line) {
            Some("") => return Some(()),
            Some(prompt) => drop(tell(prompt, &mut memory)), // `tell` has printed the error
            None => print::text("\nerror: that is longer than MAX_PROMPT (src/settings.rs), or no UTF-8\n"),
        }
    }
}

fn tell(prompt: &str, memory: &mut Memory) -> Option<Summary> {
    let request = Request::new(prompt);
    let told = memory.lend().and_then(|(state, scratch)| {
        story::tell(image::model(), &image::tokenizer(), &engine(), &request, state, scratch, &mut Terminal)
    });
    told.inspect_err(print::error).ok()
}

struct Terminal;

impl Listener for Terminal {
    fn text(&mut self, _: usize, _: u32, text: &[u8]) {
        print::piece(text);
    }

    fn between_layers(&mut self) -> bool {
        board::feed_watchdog(); // an RTOS would yield here
        true
    }
}

/// Reads and echoes a line; `None` for one that does not fit or is not UTF-8.
fn read_line(line: &mut [u8]) -> Option<&str> {
    let mut len = 0;
    loop {
        board::feed_watchdog();
        match board::read() {
            None => {}
            Some(b'\r' | b'\n') => break,
            Some(byte) => {
                board::write(byte);
                if let Some(slot) = line.get_mut(len) {
                    *slot = byte;
                }
                len += 1;
            }
        }
    }
    print::text("\n");
    core::str::from_utf8(line.get(..len)?).ok()
}
