//! The host end of the serial line against firmware that this test plays, and that misbehaves.
//! `firmware.rs` has the real one.

use std::io::{BufReader, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::Receiver;

use infer_link::{Decoder, Info, MAX_REQUEST, Message, Reply, Request, Statistics, VERSION};

use super::*;

const PIECES: [&str; 6] = ["Once", " upon", " a", " time", " there", " was"];
const STORY: &str = "Once upon a time there was\n";

fn frame(id: u8, body: Reply<'_>) -> Vec<u8> {
    infer_link::encode(&Message { id, body }, &mut [0; 256]).unwrap().to_vec()
}

fn ready(id: u8, version: u8) -> Vec<u8> {
    frame(id, Reply::Ready(Info { version, board: "\x1b[2Jb", kernels: "k\r\n", model: 1, max_seq: 8, kv_int8: false }))
}

fn accepted(id: u8) -> Vec<u8> {
    frame(id, Reply::Accepted)
}

fn token(id: u8, pos: usize) -> Vec<u8> {
    frame(id, Reply::Token { pos: pos as u32, token: 300 + pos as u32, text: PIECES[pos].as_bytes() })
}

fn done(id: u8, positions: u32) -> Vec<u8> {
    done_by(true, id, positions)
}

fn done_by(clock_is_real: bool, id: u8, positions: u32) -> Vec<u8> {
    let statistics = Statistics {
        positions,
        ended: false,
        logits_hash: 5,
        cycles: 600_000,
        clock_hz: 1_000_000,
        clock_is_real,
        stack_used: 40,
        stack_size: 80,
    };
    frame(id, Reply::Done(statistics))
}

/// The frames of a whole story.
fn story(id: u8) -> Vec<Vec<u8>> {
    [accepted(id)].into_iter().chain((0..PIECES.len()).map(|pos| token(id, pos))).chain([done(id, 6)]).collect()
}

/// A place for firmware, and the port that leads to it.
fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("tcp:{}", listener.local_addr().unwrap());
    (listener, port)
}

/// Lets infer-cli talk to firmware that answers a greeting, and the n-th request for a story with
/// what `tell` gives; an empty answer closes the line.
fn talk(args: &[&str], version: u8, tell: impl Fn(usize, u8) -> Vec<u8> + Send + 'static) -> Output {
    let (listener, port) = listen();
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
    // On a busy machine an answer may come late, which costs nothing but a warning.
    let warnings = errors.matches("warning").count() - errors.matches("was not answered").count();
    let expected = |word: &&&str| word.contains("tokens;") && !word.contains("was not answered");
    assert_eq!(warnings, words.iter().filter(expected).count(), "{errors}");
}

#[test]
fn a_story_is_shown_with_its_statistics() {
    let output = talk(&[], VERSION, |_, id| story(id).concat());
    assert_recovered(&output, &["6 positions, 100 thousand cycles each, 10.0 tok/s at 1 MHz, 40 of 80 bytes of stack"]);
}

#[test]
fn an_emulators_clock_gives_no_rate() {
    let told = |id| [story(id)[..7].concat(), done_by(false, id, 6)].concat();
    let output = talk(&[], VERSION, move |_, id| told(id));
    assert_recovered(
        &output,
        &["100 thousand cycles each, counted by an emulator: no measure of a chip's speed, 40 of 80"],
    );
    assert!(!String::from_utf8_lossy(&output.stderr).contains("tok/s"));
}

/// Board and kernels are named with control codes in all of these tests.
#[test]
fn a_board_cannot_drive_the_terminal() {
    let text = "On\x1b]0;title\x07ce\x1b[1A";
    let told = move |id| {
        let token = Reply::Token { pos: 0, token: 300, text: text.as_bytes() };
        [accepted(id), frame(id, token), done(id, 1)].concat()
    };
    let output = talk(&[], VERSION, move |_, id| told(id));
    assert_eq!(stdout(&output), "On]0;titlece[1A\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.starts_with("[2Jb, k kernels: 1 positions"), "{errors:?}");
    let output =
        talk(&[], VERSION, |_, id| frame(id, Reply::Failed { message: "bad\x1b[2J\r\u{9b}\nthing", value: None }));
    assert_fails_after(&output, "the firmware says: bad[2Jthing");
}

#[test]
fn no_more_is_shown_than_was_asked_for() {
    let output = talk(&["-n", "4"], VERSION, |_, id| story(id).concat());
    assert_eq!(output.stdout, b"Once upon a time\n");
    assert_fails_after(&output, "the firmware goes on after the 4 positions that were asked for");
    let beyond_the_cache = |_, id| {
        let token = |pos| frame(id, Reply::Token { pos, token: 7, text: b"." });
        (0..).take(20).map(token).collect::<Vec<_>>().concat()
    };
    let output = talk(&["-n", "0"], VERSION, beyond_the_cache);
    assert_eq!(output.stdout, b"........\n");
    assert_fails_after(&output, "the firmware goes on after the 8 positions that were asked for");
}

/// A board that says the same for ever, as fast as it can.
#[test]
fn repetitions_are_no_answer() {
    for repeated in [token(2, 0), accepted(2), accepted(99)] {
        let (listener, port) = listen();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let requests = requests(&stream);
            stream.write_all(&ready(requests.recv().unwrap().0, VERSION)).unwrap();
            let (id, _) = requests.recv().unwrap();
            stream.write_all(&[accepted(id), token(id, 0)].concat()).unwrap();
            let start = std::time::Instant::now();
            let id = loop {
                stream.write_all(&repeated).unwrap();
                match requests.try_recv() {
                    Ok((id, _)) => break id,
                    Err(_) => assert!(start.elapsed().as_secs() < 5, "infer-cli listens for ever"),
                }
            };
            stream.write_all(&ready(id, VERSION)).unwrap();
            for (id, is_story) in requests {
                stream.write_all(&if is_story { story(id).concat() } else { ready(id, VERSION) }).unwrap();
            }
        });
        let output = run(&["serial", &port, "--timeout", "1"]);
        assert_recovered(&output, &["nothing came for 1 s after 1 tokens; asking"]);
    }
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

/// The numbers of the requests that come in from now on, and whether they are for stories.
fn requests(stream: &TcpStream) -> Receiver<(u8, bool)> {
    let (requests, received) = std::sync::mpsc::channel();
    let reader = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut decoder = Decoder::<MAX_REQUEST>::new();
        for byte in BufReader::new(reader).bytes().map_while(Result::ok) {
            if decoder.push(byte) {
                let Message { id, body } = decoder.message::<Request<'_>>().unwrap();
                let _ = requests.send((id, matches!(body, Request::Tell { .. }))); // the test may be over
            }
        }
    });
    received
}

/// A host comes in the middle of somebody else's story, and its greeting is lost.
#[test]
fn a_greeting_is_repeated_while_an_older_story_comes_in() {
    let (listener, port) = listen();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let requests = requests(&stream);
        // The first greeting is lost. Longer than --timeout, if nobody greets again.
        let mut greetings = 0;
        for pos in 0..400 {
            stream.write_all(&frame(99, Reply::Token { pos, token: 7, text: b"old" })).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            if let Ok((id, _)) = requests.try_recv() {
                greetings += 1;
                if greetings == 2 {
                    stream.write_all(&ready(id, VERSION)).unwrap();
                    break;
                }
            }
        }
        for (id, is_story) in requests {
            assert!(is_story);
            stream.write_all(&story(id).concat()).unwrap();
        }
    });
    assert_recovered(&run(&["serial", &port, "--timeout", "1"]), &[]);
}

/// Ctrl-C ends the story on the chip, too, and its statistics are shown; a second one ends the
/// program.
#[cfg(unix)]
#[test]
fn an_interrupted_story_is_stopped() {
    let interrupted = |answers_stop: bool| {
        let (listener, port) = listen();
        let mut command = cli();
        command.args(["serial", &port]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = child.id().to_string();
        let interrupt =
            move || assert!(Command::new("sh").args(["-c", &format!("kill -INT {pid}")]).status().unwrap().success());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut decoder = Decoder::<MAX_REQUEST>::new();
            let mut story = 0;
            for byte in BufReader::new(stream.try_clone().unwrap()).bytes().map_while(Result::ok) {
                if !decoder.push(byte) {
                    continue;
                }
                let Message { id, body } = decoder.message::<Request<'_>>().unwrap();
                match body {
                    Request::Hello => stream.write_all(&ready(id, VERSION)).unwrap(),
                    Request::Tell { .. } => {
                        story = id;
                        stream.write_all(&[accepted(id), token(id, 0), token(id, 1)].concat()).unwrap();
                        interrupt();
                    }
                    Request::Stop if answers_stop => stream.write_all(&done(story, 2)).unwrap(),
                    Request::Stop => interrupt(),
                }
            }
        });
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (text, errors) = interrupted(true);
    assert_eq!(text, "Once upon\n");
    assert!(errors.contains("2 positions") && !errors.contains("warning"), "{errors}");
    assert!(!interrupted(false).1.contains("positions"));
}

#[test]
fn the_model_to_check_with_is_opened_before_the_story() {
    let output = run(&["serial", "/dev/no-such-port", "--check", "no-such-model.bin"]);
    assert_fails(&output, 1, &["no-such-model.bin"]);
    let (_folder, model) = random_model("serial_check", |_| ());
    let output = talk(&["--check", &model], VERSION, |_, id| story(id).concat());
    assert_fails(&output, 1, &[&model, "is not the one in the firmware"]);
    assert!(output.stdout.is_empty());
}

#[test]
fn what_cannot_be_made_good_is_an_error() {
    let failed = |_, id| frame(id, Reply::Failed { message: "not a number for token", value: Some(7) });
    assert_fails_after(&talk(&[], VERSION, failed), "the firmware says: not a number for token 7");
    assert_fails_after(&talk(&[], VERSION + 1, failed), "the firmware speaks version 3 of the protocol");
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
fn a_board_that_talks_without_an_answer_is_given_up() {
    let (listener, port) = listen();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(&accepted(99)).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    assert_fails(&run(&["serial", &port, "--timeout", "1"]), 1, &[&port, "talks, but has not answered for 10 s"]);
}

#[test]
fn a_port_that_is_not_there_is_named() {
    assert_fails(&run(&["serial", "/dev/no-such-port"]), 1, &["port /dev/no-such-port"]);
    let (_silent, port) = listen();
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
