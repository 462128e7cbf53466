//! infer-cli and the firmware image `link` in QEMU, over a line that damages what it carries.
//!
//! `ci.sh firmware` builds the image and runs this with FIRMWARE (the image), FIRMWARE_MODEL (the
//! model in it, its tokenizer beside it) and FIRMWARE_MACHINE (QEMU's name of the board).
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Bytes of the frame of `Request::Hello`.
const GREETING: usize = 9;
/// A byte from the board that lies within the story, however often it was greeted before.
const STORY: usize = 600;
/// QEMU's options for a serial line through a socket.
const SOCKET: &[&str] = &["-serial", "unix:serial,server,nowait"];

struct Image {
    elf: PathBuf,
    model: PathBuf,
    machine: String,
}

fn image() -> Option<Image> {
    let Ok(elf) = std::env::var("FIRMWARE") else {
        tests::shared::skip("FIRMWARE names no image: ./ci.sh firmware runs it");
        return None;
    };
    let setting = |name| std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    Some(Image { elf: elf.into(), model: setting("FIRMWARE_MODEL").into(), machine: setting("FIRMWARE_MACHINE") })
}

/// An emulated board, ended with the test.
struct Board {
    qemu: Child,
    folder: PathBuf,
}

impl Board {
    fn start(test: &str, image: &Image, elf: &Path, options: &[&str]) -> Board {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new("qemu-system-arm");
        // Sockets of short names relative to the folder: their paths have a limit of 108 bytes.
        command.current_dir(&folder).args(["-M", &image.machine, "-display", "none", "-semihosting"]);
        command.args(options).args(["-monitor", "unix:monitor,server,nowait"]).arg("-kernel").arg(elf);
        let qemu = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("qemu-system-arm");
        Board { qemu, folder }
    }

    fn connect(&self, socket: &str) -> UnixStream {
        let start = Instant::now();
        loop {
            match UnixStream::connect(self.folder.join(socket)) {
                Ok(stream) => return stream,
                Err(e) => assert!(start.elapsed() < Duration::from_secs(20), "{socket}: {e}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Changes or drops the `n`-th byte that a line carries.
type Damage = Box<dyn FnMut(usize, u8) -> Vec<u8> + Send>;

/// Carries bytes from one end to the other.
fn carry(from: impl Read, mut to: impl Write, mut damage: Damage) {
    for (n, byte) in BufReader::new(from).bytes().map_while(Result::ok).enumerate() {
        if to.write_all(&damage(n, byte)).is_err() {
            return;
        }
    }
}

/// A line to the board that damages what it carries in each direction.
fn line(board: &Board, to_board: Damage, from_board: Damage) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("tcp:{}", listener.local_addr().unwrap());
    let serial = board.connect("serial");
    std::thread::spawn(move || {
        let (host, _) = listener.accept().unwrap();
        let (host2, serial2) = (host.try_clone().unwrap(), serial.try_clone().unwrap());
        std::thread::spawn(move || carry(host2, serial2, to_board));
        carry(serial, host, from_board);
    });
    port
}

/// infer-cli with the prompt and settings of every test; it checks tokens and logits against its
/// own.
fn infer_cli(port: &str, image: &Image, steps: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infer-cli"));
    command.args(["serial", port, "-i", "Once upon a time", "-s", "3", "-n", steps, "--timeout", "30", "--check"]);
    command.arg(&image.model).stdin(Stdio::null());
    command
}

fn tell(board: &Board, image: &Image, to_board: Damage, from_board: Damage) -> Output {
    infer_cli(&line(board, to_board, from_board), image, "64").output().unwrap()
}

fn assert_told(output: &Output, words: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Once upon a time"));
    assert!(errors.contains("tokens and their logits are as on this machine"), "{errors}");
    assert!(errors.contains("counted by an emulator"), "{errors}");
    for word in words {
        assert!(errors.contains(word), "no {word:?} in: {errors}");
    }
}

fn unharmed() -> Damage {
    Box::new(|_, byte| vec![byte])
}

#[test]
fn a_story_over_a_sound_line() {
    let Some(image) = image() else { return };
    let board = Board::start("sound", &image, &image.elf, SOCKET);
    assert_told(&tell(&board, &image, unharmed(), unharmed()), &[]);
}

#[test]
fn a_story_over_a_pseudo_terminal() {
    let Some(image) = image() else { return };
    let mut board = Board::start("pty", &image, &image.elf, &["-serial", "pty"]);
    let mut line = String::new();
    let mut said = BufReader::new(board.qemu.stdout.take().unwrap());
    said.read_line(&mut line).unwrap(); // char device redirected to /dev/pts/3 (label serial0)
    let port = line.split(' ').find(|word| word.starts_with("/dev/")).unwrap_or_else(|| panic!("no port in {line:?}"));
    assert_told(&infer_cli(port, &image, "64").output().unwrap(), &[]);
}

#[test]
fn garbage_both_ways() {
    let Some(image) = image() else { return };
    let board = Board::start("garbage", &image, &image.elf, SOCKET);
    let noise = |n: usize| (0..n).map(move |i| ((i * n * 7919) >> 3) as u8);
    // Around the greeting.
    let to_board: Damage = Box::new(move |n, byte| match n {
        0 | GREETING => noise(400 + n).chain([byte]).collect(),
        _ => vec![byte],
    });
    // About every 512 bytes, at distances that do not repeat.
    let strikes = |n: usize| (n as u32).wrapping_mul(n as u32).wrapping_mul(0x9e37_79b9) >> 23 == 7;
    let from_board: Damage = Box::new(move |n, byte| match strikes(n) {
        true => noise(100).chain([byte]).collect(),
        false => vec![byte],
    });
    assert_told(&tell(&board, &image, to_board, from_board), &["a frame was lost after ", "asking for the rest"]);
}

#[test]
fn cut_frames_both_ways() {
    let Some(image) = image() else { return };
    let board = Board::start("cut", &image, &image.elf, SOCKET);
    // In the first request for a story, the first frame longer than a greeting, and in a token of
    // the second.
    let (mut at, mut cut) = (0, 0);
    let to_board: Damage = Box::new(move |_, byte| {
        at = if byte == 0 { 0 } else { at + 1 };
        if at <= GREETING || cut == 6 {
            return vec![byte];
        }
        cut += 1;
        Vec::new()
    });
    let from_board: Damage = Box::new(|n, byte| if (STORY..STORY + 10).contains(&n) { Vec::new() } else { vec![byte] });
    let output = tell(&board, &image, to_board, from_board);
    assert_told(&output, &["the request was not answered after 0 tokens; asking", "a frame was lost after "]);
}

#[test]
fn a_reset_in_the_middle() {
    let Some(image) = image() else { return };
    let board = Board::start("reset", &image, &image.elf, SOCKET);
    let mut monitor = board.connect("monitor");
    let reset: Damage = Box::new(move |n, byte| {
        if n == STORY {
            monitor.write_all(b"system_reset\n").unwrap();
        }
        vec![byte]
    });
    let output = tell(&board, &image, unharmed(), reset);
    assert_told(&output, &["the firmware started anew after ", " tokens; asking for the rest"]);
}

#[test]
fn an_interrupted_story_ends_on_the_chip() {
    let Some(image) = image() else { return };
    let board = Board::start("interrupted", &image, &image.elf, SOCKET);
    let (id, ids) = std::sync::mpsc::channel::<u32>();
    let interrupt: Damage = Box::new(move |n, byte| {
        if n == STORY {
            let kill = format!("kill -INT {}", ids.recv().unwrap());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        vec![byte]
    });
    let mut command = infer_cli(&line(&board, unharmed(), interrupt), &image, "256");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    id.send(child.id()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("tokens and their logits are as on this machine"), "{errors}");
    assert!(number_before(&errors, " positions") < 256, "{errors}");
}

fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().and_then(|before| before.split(' ').next_back());
    before.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number before {word:?} in: {text}"))
}

/// Its counter has 24 bits: where an instruction takes a microsecond, it wraps during the checksum
/// of the model.
#[test]
fn cycles_are_counted_beyond_the_counter() {
    let Some(image) = image() else { return };
    let thousand_cycles = |shift: &str| {
        let board = Board::start("cycles", &image, &image.elf, &[SOCKET, &["-icount", shift]].concat());
        let output = infer_cli(&line(&board, unharmed(), unharmed()), &image, "16").output().unwrap();
        assert_told(&output, &[]);
        number_before(&String::from_utf8_lossy(&output.stderr), " thousand cycles each") as f64
    };
    let ratio = thousand_cycles("shift=10") / thousand_cycles("shift=4"); // 1,024 ns and 16 ns
    assert!((ratio / 64.0 - 1.0).abs() < 0.05, "{ratio} instead of 64");
}

#[test]
fn a_damaged_model_in_flash_is_an_error() {
    let Some(image) = image() else { return };
    let model = std::fs::read(&image.model).unwrap();
    let elf = std::fs::read(&image.elf).unwrap();
    let at = elf.windows(64).position(|bytes| bytes == &model[..64]).expect("the image holds the model");
    for damaged in [0, 8, model.len() / 2, model.len() - 1] {
        let mut elf = elf.clone();
        elf[at + damaged] ^= 1;
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("damaged.elf");
        std::fs::write(&path, elf).unwrap();
        let board = Board::start("damaged", &image, &path, SOCKET);
        let output = tell(&board, &image, unharmed(), unharmed());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "byte {damaged}: {errors}");
        assert!(errors.contains("the firmware says: the model in flash is damaged, flash it again"), "{errors}");
    }
}
