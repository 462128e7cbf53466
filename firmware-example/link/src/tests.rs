use std::vec::Vec;

use super::*;

const TELL: Message<Request<'_>> = Message {
    id: 7,
    body: Request::Tell { temperature: 0.8, top_p: 0.9, seed: 42, steps: 256, prompt: "Once upon a time\0" },
};
const TOKEN: Message<Reply<'_>> = Message { id: 7, body: Reply::Token { pos: 3, token: 300, text: b"\0 \xf0\x9f" } };

fn frame<T: Serialize>(message: &Message<T>) -> Vec<u8> {
    encode(message, &mut [0; MAX_REPLY]).unwrap().to_vec()
}

/// The requests that a stream holds, damaged ones as errors.
fn requests(stream: &[u8]) -> Vec<Result<u8, Garbled>> {
    let mut decoder = Decoder::<MAX_REQUEST>::new();
    let mut found = Vec::new();
    for &byte in stream {
        if decoder.push(byte) {
            found.push(decoder.message::<Request<'_>>().map(|message| {
                assert_eq!(message.body, TELL.body);
                message.id
            }));
        }
    }
    found
}

#[test]
fn messages_arrive_as_they_were_sent() {
    assert_eq!(requests(&frame(&TELL).repeat(3)), [Ok(7), Ok(7), Ok(7)]);
    let mut decoder = Decoder::<MAX_REPLY>::new();
    let complete = frame(&TOKEN).into_iter().filter(|&byte| decoder.push(byte)).count();
    assert_eq!((complete, decoder.message()), (1, Ok(TOKEN)));
    assert_eq!(decoder.message::<Reply<'_>>(), Ok(TOKEN), "reading does not change it");
}

#[test]
fn the_longest_prompt_fits_the_chips_buffer() {
    let prompt = "x".repeat(MAX_PROMPT);
    let body = Request::Tell { temperature: 1.0, top_p: 1.0, seed: u64::MAX, steps: u32::MAX, prompt: &prompt };
    let mut buffer = [0; MAX_REQUEST];
    let frame = encode(&Message { id: 255, body }, &mut buffer).unwrap();
    let mut decoder = Decoder::<MAX_REQUEST>::new();
    assert!(frame.iter().any(|&byte| decoder.push(byte)));
    assert_eq!(decoder.message(), Ok(Message { id: 255, body }));
    assert_eq!(encode(&Message { id: 255, body }, &mut [0; 64]), None);
}

#[test]
fn every_cut_frame_is_noticed_and_the_next_one_is_read() {
    let whole = frame(&TELL);
    for cut in 0..whole.len() {
        let mut stream = whole[..cut].to_vec();
        stream.extend(&whole);
        let found = requests(&stream);
        assert_eq!(found.last(), Some(&Ok(7)), "cut to {cut} bytes");
        assert_eq!(found.len(), if cut < 2 { 1 } else { 2 }, "cut to {cut} bytes");
        assert!(found.len() == 1 || found[0] == Err(Garbled) || cut == whole.len() - 1, "cut to {cut} bytes");

        stream = whole[cut..].to_vec(); // the receiver starts to listen in the middle
        stream.extend(&whole);
        assert_eq!(requests(&stream).last(), Some(&Ok(7)), "from byte {cut}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let whole = frame(&TELL);
    for bit in 0..8 * whole.len() {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let harmless = bit / 8 == 0; // the leading 0 only ends what came before
        let found = requests(&damaged);
        assert!(harmless || !found.contains(&Ok(7)), "bit {bit}");
        damaged.extend(&whole);
        assert_eq!(requests(&damaged).last(), Some(&Ok(7)), "the frame after bit {bit}");
    }
}

#[test]
fn garbage_of_any_length_is_passed_over() {
    let mut random = 1u64;
    let mut garbage = Vec::new();
    for len in 0..2 * MAX_REQUEST {
        garbage.clear();
        garbage.extend((0..len).map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        }));
        garbage.extend(frame(&TELL));
        let found = requests(&garbage);
        assert_eq!(found.last(), Some(&Ok(7)), "{len} bytes of garbage");
        assert_eq!(found.iter().filter(|found| found.is_ok()).count(), 1);
    }
    assert_eq!(requests(&[1; 10 * MAX_REQUEST]), []);
}
