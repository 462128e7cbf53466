//! Tells the stories that a host asks for in frames: the other end of `infer-cli serial`.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use firmware_example::clock::{self, Clock};
use firmware_example::explain::explain;
use firmware_example::image::{self, CHECKSUM, Memory, PLAN};
use firmware_example::story::{self, Listener};
use firmware_example::{board, engine, settings, stack};
use heapless::String;
use infer_core::KvType;
use infer_link::{Decoder, Info, MAX_PROMPT, MAX_REPLY, MAX_REQUEST, Message, Reply, Request, Statistics, VERSION};

const _: () = assert!(settings::MAX_PROMPT >= MAX_PROMPT, "the host may send MAX_PROMPT bytes");

#[entry]
fn main() -> ! {
    board::init();
    if let Some(mut memory) = image::memory() {
        serve(&mut memory);
    }
    board::exit(false)
}

/// Answers requests for ever.
fn serve(memory: &mut Memory) {
    let mut decoder = Decoder::new();
    let mut pending = false; // whether the request that ended a story lies in the decoder
    send(0, Reply::Ready(info()));
    loop {
        board::feed_watchdog();
        if !core::mem::take(&mut pending) && !receive(&mut decoder) {
            continue;
        }
        let Ok(Message { id, body }) = decoder.message() else { continue };
        match body {
            Request::Hello => send(id, Reply::Ready(info())),
            Request::Stop => {}
            Request::Tell { temperature, top_p, seed, steps, prompt } => {
                let Ok(prompt) = String::<MAX_PROMPT>::try_from(prompt) else {
                    send(
                        id,
                        Reply::Failed { message: "the prompt is too long; bytes", value: Some(prompt.len() as i64) },
                    );
                    continue;
                };
                let request = story::Request { prompt: &prompt, temperature, top_p, seed, steps: steps as usize };
                let mut host = Host { id, decoder: &mut decoder, interrupted: false, clock: Clock::start() };
                host.tell(&request, memory);
                pending = host.interrupted;
            }
        }
    }
}

fn info() -> Info<'static> {
    Info {
        version: VERSION,
        board: board::NAME,
        kernels: engine().kernels.name,
        model: CHECKSUM,
        max_seq: PLAN.limits.max_seq as u32,
        kv_int8: PLAN.limits.kv == KvType::Q8,
    }
}

/// The host during a story.
struct Host<'a> {
    id: u8,
    decoder: &'a mut Decoder<MAX_REQUEST>,
    interrupted: bool,
    clock: Clock,
}

impl Host<'_> {
    fn tell(&mut self, request: &story::Request<'_>, memory: &mut Memory) {
        send(self.id, Reply::Accepted);
        let model = image::model();
        let reply = if image::is_intact(model) {
            let told = memory.lend().and_then(|(state, scratch)| {
                story::tell(model, &image::tokenizer(), &engine(), request, state, scratch, self)
            });
            match told {
                Ok(summary) => Reply::Done(Statistics {
                    positions: summary.positions as u32,
                    ended: summary.ended,
                    logits_hash: summary.hash,
                    cycles: self.clock.cycles(),
                    clock_hz: board::CLOCK_HZ,
                    clock_is_real: clock::is_real(),
                    stack_used: stack::used() as u32,
                    stack_size: stack::size() as u32,
                }),
                Err(error) => {
                    let (message, value) = explain(&error);
                    Reply::Failed { message, value }
                }
            }
        } else {
            Reply::Failed { message: "the model in flash is damaged, flash it again", value: None }
        };
        send(self.id, reply);
    }
}

impl Listener for Host<'_> {
    fn text(&mut self, pos: usize, token: u32, text: &[u8]) {
        send(self.id, Reply::Token { pos: pos as u32, token, text });
    }

    fn between_layers(&mut self) -> bool {
        board::feed_watchdog(); // an RTOS would yield here
        // A request ends the story; noise does not.
        self.interrupted = receive(self.decoder) && self.decoder.message::<Request<'_>>().is_ok();
        !self.interrupted
    }
}

/// Takes the bytes that have come in. True when a frame is complete.
fn receive(decoder: &mut Decoder<MAX_REQUEST>) -> bool {
    while let Some(byte) = board::read() {
        if decoder.push(byte) {
            return true;
        }
    }
    false
}

fn send(id: u8, body: Reply<'_>) {
    if try_send(id, body).is_none() {
        try_send(id, Reply::Failed { message: "a token's text does not fit a frame", value: None });
    }
}

fn try_send(id: u8, body: Reply<'_>) -> Option<()> {
    let mut buffer = [0; MAX_REPLY];
    infer_link::encode(&Message { id, body }, &mut buffer)?.iter().for_each(|&byte| board::write(byte));
    Some(())
}
