//! Tells a story over the serial line and compares the logits with the host's.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use firmware_example::image::{self, PLAN};
use firmware_example::story::{self, Listener, Request};
use firmware_example::{board, engine, print, settings};

#[entry]
fn main() -> ! {
    board::init();
    board::exit(run().is_some())
}

fn run() -> Option<()> {
    let mut memory = image::memory()?;
    let tokenizer = image::tokenizer();
    let request = Request::new(settings::PROMPT);
    let result = story::tell(image::model(), &PLAN, &tokenizer, &engine(), &request, &mut memory, &mut Terminal);
    print::text("\nlogits ");
    print::hash(result.ok()?.hash);
    print::text("\n");
    Some(())
}

struct Terminal;

impl Listener for Terminal {
    fn text(&mut self, _: usize, _: u32, text: &[u8]) {
        print::piece(text);
    }

    fn between_layers(&mut self) -> bool {
        board::feed_watchdog();
        true
    }
}
