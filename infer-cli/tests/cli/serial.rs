//! The host end of the serial line against firmware that is played here, and misbehaves. `firmware.rs` has the real one.

use std::io::{BufReader, Read};
use std::net::{Shutdown, TcpListener, TcpStream};

use infer_link::{Decoder, Info, MAX_REQUEST, Message, Reply, Request, Statistics, VERSION};

use super::*;

const PIECES: [&str; 6] = ["Once", " upon", " a", " time", " there", " was"];
const STORY: &str = "Once upon a time there was\n";

fn frame(id: u8, body: Reply<'_>) -> Vec<u8> {
    infer_link::encode(&Message { id, body }, &mut [0; 256]).unwrap().to_vec()
}

fn ready(id: u8, version: u8) -> Vec<u8> {
    frame(id, Reply::Ready(Info { version, board: "b", kernels: "k", model: 1, max_seq: 8, kv_int8: false }))
}

fn accepted(id: u8) -> Vec<u8> {
    frame(id, Reply::Accepted)
}

fn token(id: u8, pos: usize) -> Vec<u8> {
    frame(id, Reply::Token { pos: pos as u32, token: 300 + pos as u32, text: PIECES[pos].as_bytes() })
}

fn done(id: u8) -> Vec<u8> {
    let statistics = Statistics {
        positions: 6,
        ended: false,
        logits_hash: 5,
        cycles: 600_000,
        clock_hz: 1_000_000,
        stack_used: 40,
        stack_size: 80,
    };
    frame(id, Reply::Done(statistics))
}

/// The frames of a whole story.
fn story(id: u8) -> Vec<Vec<u8>> {
    [accepted(id)].into_iter().chain((0..PIECES.len()).map(|pos| token(id, pos))).chain([done(id)]).collect()
}

/// Lets infer-cli talk to firmware that answers a greeting, and the n-th request for a story with what `tell` gives; an
/// empty answer closes the line.
fn talk(args: &[&str], version: u8, tell: impl Fn(usize, u8) -> Vec<u8> + Send + 'static) -> Output {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("tcp:{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut told = 0;
        for stream in listener.incoming() {
            serve(stream.unwrap(), version, &mut told, &tell);
        }
    });
    let output = run(&[&["serial", &port, "--timeout", "2"], args].concat());
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    output
}

fn serve(mut stream: TcpStream, version: u8, told: &mut usize, tell: &impl Fn(usize, u8) -> Vec<u8>) {
    let mut decoder = Decoder::<MAX_REQUEST>::new();
    for byte in BufReader::new(stream.try_clone().unwrap()).bytes() {
        let Ok(byte) = byte else { return };
        if !decoder.push(byte) {
            continue;
        }
        let Message { id, body } = decoder.message::<Request<'_>>().unwrap();
        let answer = match body {
            Request::Hello => ready(id, version),
            Request::Stop => continue,
            Request::Tell { .. } => {
                *told += 1;
                tell(*told, id)
            }
        };
        if answer.is_empty() {
            return stream.shutdown(Shutdown::Both).unwrap();
        }
        if stream.write_all(&answer).is_err() {
            return; // infer-cli has gone
        }
    }
}

/// The story was shown once and whole, with these words on standard error.
fn assert_recovered(output: &Output, words: &[&str]) {
    assert_eq!(stdout(output), STORY);
    let errors = String::from_utf8_lossy(&output.stderr);
    for word in words {
        assert!(errors.contains(word), "no {word:?} in: {errors}");
    }
    assert_eq!(errors.matches("warning").count(), words.iter().filter(|word| word.contains("tokens;")).count());
}

#[test]
fn a_story_is_shown_with_its_statistics() {
    let output = talk(&[], VERSION, |_, id| story(id).concat());
    assert_recovered(&output, &["6 positions, 100 thousand cycles each, 10.0 tok/s at 1 MHz, 40 of 80 bytes of stack"]);
}

#[test]
fn noise_between_frames_is_passed_over() {
    assert_recovered(&talk(&[], VERSION, |_, id| story(id).join(&b"boot: \xff\x01\0\0noise"[..])), &[]);
}

#[test]
fn a_lost_or_cut_frame_is_reported_and_made_good() {
    let output = talk(&[], VERSION, |n, id| {
        let mut frames = story(id);
        match n {
            1 => drop(frames.remove(4)),
            2 => frames[5].truncate(5),
            3 => drop(frames.drain(1..3)), // known by now
            _ => {}
        }
        frames.concat()
    });
    assert_recovered(&output, &["a frame was lost after 3 tokens; asking", "a frame was lost after 4 tokens; asking"]);
}

#[test]
fn a_reset_and_a_lost_connection_are_reported_and_made_good() {
    let output = talk(&[], VERSION, |n, id| match n {
        1 => [token(id, 0), token(id, 1), ready(0, VERSION)].concat(),
        2 => Vec::new(),
        3 => vec![b'?'], // it did not understand
        _ => story(id).concat(),
    });
    let words = [
        "the firmware started anew after 2 tokens; asking",
        "the line failed (unexpected end of file) after 2 tokens; asking",
        "the request was not answered after 2 tokens; asking",
    ];
    assert_recovered(&output, &words);
}

#[test]
fn what_cannot_be_made_good_is_an_error() {
    let failed = |_, id| frame(id, Reply::Failed { message: "not a number for token", value: Some(7) });
    assert_fails_after(&talk(&[], VERSION, failed), "the firmware says: not a number for token 7");
    assert_fails_after(&talk(&[], VERSION + 1, failed), "the firmware speaks version 2 of the protocol");
    let changing = |n, id| match n {
        1 => [token(id, 0), token(id, 1), ready(0, VERSION)].concat(),
        _ => [token(id, 0), frame(id, Reply::Token { pos: 1, token: 9, text: b"?" })].concat(),
    };
    assert_fails_after(&talk(&[], VERSION, changing), "token 1 was 301 before the interruption and is 9 now");
    let always = |_, id| [token(id, 0), ready(0, VERSION)].concat();
    assert_fails_after(
        &talk(&[], VERSION, always),
        "the firmware started anew after 1 tokens; gave up after 5 attempts",
    );
    let silent = |_, id| [accepted(id), token(id, 0)].concat();
    assert_fails_after(&talk(&["--timeout", "1"], VERSION, silent), "nothing came for 1 s after 1 tokens; gave up");
}

#[test]
fn a_port_that_is_not_there_is_named() {
    assert_fails(&run(&["serial", "/dev/no-such-port"]), 1, &["port /dev/no-such-port"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("tcp:{}", silent.local_addr().unwrap());
    assert_fails(&run(&["serial", &port, "--timeout", "1"]), 1, &[&port, "no answer within 1 s", "--baud 115200"]);
    assert_fails(&run(&["serial", &port, "-i", &"x".repeat(200)]), 2, &["200 bytes", "at most 128"]);
}

fn assert_fails_after(output: &Output, words: &str) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.lines().any(|line| line.starts_with("error: ") && line.contains(words)),
        "no {words:?} in: {message}"
    );
}
