//! The frames between firmware that runs infer-core and its host, over a serial line.
//!
//! A frame is a 0, a body, and a 0. The body is the COBS encoding of a message in postcard's format
//! and its CRC-32 (little endian). COBS leaves no 0 inside, so a receiver that starts in the
//! middle, or has lost bytes, is in step again at the next 0; the leading 0 ends a frame that was
//! cut short. The CRC tells damaged frames.
//!
//! Each request carries a number that its replies repeat, so that late replies to an earlier
//! request are known as such. Firmware says [`Reply::Ready`] with number 0 when it starts: in the
//! middle of a story, the host learns from it that the board was reset. A request that arrives
//! during a story ends the story. Both ends drop damaged frames silently; an end that waits for an
//! answer asks again.
#![no_std]

#[cfg(test)]
extern crate std;

use heapless::Vec;
use serde::{Deserialize, Serialize};

/// Version of this protocol, in [`Info`]. It changes with any message. [`Info`] itself stays as it
/// is, so that ends of different versions recognise each other.
pub const VERSION: u8 = 2;
/// Longest prompt in bytes.
pub const MAX_PROMPT: usize = 128;
/// Longest frame of a request, which [`Decoder`] on the chip must hold.
pub const MAX_REQUEST: usize = MAX_PROMPT + 64;
/// Longest frame of a reply. It limits the text of a token; texts of llama2.c's vocabularies have
/// about 32 bytes at most.
pub const MAX_REPLY: usize = 256;

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// A request or a reply, with the number of the request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message<T> {
    /// Number of the request, chosen by the host; 0 where a reply answers none.
    pub id: u8,
    /// The request or reply.
    pub body: T,
}

/// A message from the host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Asks who the firmware is. Answered by [`Reply::Ready`].
    Hello,
    /// Ends the story. Answered by [`Reply::Done`].
    Stop,
    /// Asks for a story. Answered by [`Reply::Accepted`], a [`Reply::Token`] for each token, and
    /// [`Reply::Done`] or [`Reply::Failed`].
    Tell {
        /// infer-cli's flag -t.
        temperature: f32,
        /// infer-cli's flag -p.
        top_p: f32,
        /// infer-cli's flag -s; not 0.
        seed: u64,
        /// Positions to run for, prompt included; cut to [`Info::max_seq`].
        steps: u32,
        /// Beginning of the story, at most [`MAX_PROMPT`] bytes.
        #[serde(borrow)]
        prompt: &'a str,
    },
}

/// A message from the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply<'a> {
    /// The firmware has started (number 0), or answers [`Request::Hello`].
    #[serde(borrow)]
    Ready(Info<'a>),
    /// Acknowledges [`Request::Tell`] at once. Without it, the request is lost.
    Accepted,
    /// The next token of the story, the prompt's included.
    Token {
        /// The position that it follows: 0, 1, … without gaps.
        pos: u32,
        /// The token.
        token: u32,
        /// Its text, in bytes, since a token may be a part of a character.
        text: &'a [u8],
    },
    /// The story is over.
    Done(Statistics),
    /// The request cannot be carried out.
    Failed {
        /// The reason.
        message: &'a str,
        /// The number that the message ends with, if any.
        value: Option<i64>,
    },
}

/// A description of the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info<'a> {
    /// [`VERSION`]
    pub version: u8,
    /// Name of the board.
    pub board: &'a str,
    /// Name of the kernels.
    pub kernels: &'a str,
    /// FNV-1a (64 bits) of the model file.
    pub model: u64,
    /// Positions of the KV cache.
    pub max_seq: u32,
    /// Whether the KV cache is int8 rather than f32.
    pub kv_int8: bool,
}

/// The outcome of a story.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Positions computed: one for each token told, and one more if the model ended the story.
    pub positions: u32,
    /// Whether the model ended the story, with a BOS that is not told.
    pub ended: bool,
    /// FNV-1a (64 bits) of all logits.
    pub logits_hash: u64,
    /// Cycles of the core's clock, from request to end.
    pub cycles: u64,
    /// Cycles per second.
    pub clock_hz: u32,
    /// Whether the clock is a chip's. An emulator's clock counts instructions, or the time of its
    /// host.
    pub clock_is_real: bool,
    /// The most bytes of stack used since the start.
    pub stack_used: u32,
    /// Bytes between statics and the top of the stack.
    pub stack_size: u32,
}

/// A frame that is damaged, too long, or no message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// Writes a message as a frame into `buffer`; `None` when it is too small.
pub fn encode<'b, T: Serialize>(message: &Message<T>, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    use postcard::ser_flavors::{Cobs, Slice, crc::CrcModifier};
    let (first, rest) = buffer.split_first_mut()?;
    *first = 0;
    let flavor = CrcModifier::new(Cobs::try_new(Slice::new(rest)).ok()?, CRC.digest());
    let len = postcard::serialize_with_flavor(message, flavor).ok()?.len();
    buffer.get(..len + 1)
}

/// Finds frames in a stream of bytes; `N` bounds their length.
#[derive(Debug, Default)]
pub struct Decoder<const N: usize> {
    bytes: Vec<u8, N>,
    overflow: bool,
    complete: bool,
}

impl<const N: usize> Decoder<N> {
    /// An empty decoder.
    pub const fn new() -> Self {
        Decoder { bytes: Vec::new(), overflow: false, complete: false }
    }

    /// Adds a byte. True when it ends a frame, which [`message`](Decoder::message) reads until the
    /// next byte comes.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.complete {
            *self = Decoder::new();
        }
        if byte != 0 {
            self.overflow |= self.bytes.push(byte).is_err();
            return false;
        }
        // Nothing lies between the end of a frame and the start of the next.
        self.complete = !self.bytes.is_empty();
        let len = if self.overflow { 0 } else { cobs::decode_in_place(&mut self.bytes).unwrap_or(0) };
        self.bytes.truncate(len);
        self.complete
    }

    /// The message in the frame.
    ///
    /// # Errors
    /// [`Garbled`] for anything that is not what [`encode`] wrote.
    pub fn message<'a, T: Deserialize<'a>>(&'a self) -> Result<Message<T>, Garbled> {
        match postcard::take_from_bytes_crc32(&self.bytes, CRC.digest()) {
            Ok((message, [])) if self.complete => Ok(message),
            _ => Err(Garbled),
        }
    }
}

#[cfg(test)]
mod tests;
