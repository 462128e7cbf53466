//! The line to the firmware: sends requests, reads answers, recovers from lost ones.
//!
//! Whatever goes wrong on the way (a damaged or lost frame, a reset, silence, a lost connection),
//! the remedy is the same: get an answer again, and ask for the same story with the same seed. It
//! comes token for token as before, so what has been shown is compared instead of shown again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use infer_link::{Decoder, MAX_REPLY, Message, Reply, Request, Statistics, VERSION};

use crate::args::SerialArgs;
use crate::text::TextOut;

/// The number of requests for a story in a row that bring no new token before giving up.
const ATTEMPTS: usize = 5;
/// Time to wait for an answer that the firmware can give at once.
const PROMPTLY: Duration = Duration::from_secs(1);
/// Timeouts to wait for the end of a story that an earlier host asked for.
const OLD_STORY: u32 = 10;
/// The interval at which waiting looks at the clock, and for Ctrl-C.
const POLL: Duration = Duration::from_millis(50);

/// Whether a story is coming in, and whether its end is wanted.
static STORY: AtomicU8 = AtomicU8::new(NONE);
const NONE: u8 = 0;
const COMING: u8 = 1;
const UNWANTED: u8 = 2;

/// Handles Ctrl-C: asks for the end of the story that is coming in. Returns false when there is
/// none, or its end was asked for already.
pub fn stop() -> bool {
    STORY.compare_exchange(COMING, UNWANTED, Relaxed, Relaxed).is_ok()
}

/// Whether the end of the story was asked for.
pub fn stopped() -> bool {
    STORY.load(Relaxed) == UNWANTED
}

/// The firmware's description of itself.
#[derive(Clone, PartialEq)]
pub struct Firmware {
    pub board: String,
    pub kernels: String,
    pub model: u64,
    pub max_seq: usize,
    pub kv_int8: bool,
}

/// Why a story stopped before its end.
enum Trouble {
    /// Asking again may help.
    Passing(String),
    /// Asking again will not help.
    Lasting(anyhow::Error),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Trouble {
        Trouble::Passing(format!("the line failed ({e})"))
    }
}

trait Line: Read + Write {}

impl<T: Read + Write> Line for T {}

/// A serial line to firmware.
pub struct Link<'a> {
    port: &'a str,
    baud: u32,
    timeout: Duration,
    line: Box<dyn Line>,
    decoder: Decoder<MAX_REPLY>,
    /// Bytes received, and how many of them were decoded.
    received: ([u8; 256], usize, usize),
    /// Number of the last request.
    id: u8,
    /// When the firmware was last heard.
    heard: Instant,
}

impl<'a> Link<'a> {
    pub fn open(args: &'a SerialArgs) -> anyhow::Result<Link<'a>> {
        let (port, baud) = (&*args.port, args.baud);
        let line = open_line(port, baud).with_context(|| format!("port {port}"))?;
        let timeout = Duration::from_secs(args.timeout.get().into());
        Ok(Link {
            port,
            baud,
            timeout,
            line,
            decoder: Decoder::new(),
            received: ([0; 256], 0, 0),
            id: 0,
            heard: Instant::now(),
        })
    }

    /// Sends a request under a new number.
    fn send(&mut self, body: Request<'_>) -> io::Result<()> {
        self.id = if self.id == u8::MAX { 1 } else { self.id + 1 };
        let mut buffer = [0; infer_link::MAX_REQUEST + 8];
        let frame = infer_link::encode(&Message { id: self.id, body }, &mut buffer);
        self.line.write_all(frame.ok_or(ErrorKind::InvalidInput)?)?;
        self.line.flush()
    }

    /// The next message that is not damaged. `None` when there is none by the deadline, however
    /// much else comes in.
    fn receive(&mut self, deadline: Instant) -> io::Result<Option<Message<Reply<'_>>>> {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        loop {
            let (bytes, len, at) = &mut self.received;
            while at < len {
                *at += 1;
                if self.decoder.push(bytes[*at - 1]) && self.decoder.message::<Reply<'_>>().is_ok() {
                    self.heard = Instant::now();
                    return Ok(self.decoder.message().ok());
                }
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            (*len, *at) = (0, 0); // nothing is decoded twice when the line fails
            *len = match self.line.read(bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => n,
                Err(e) if matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(e) => return Err(e),
            };
        }
    }

    /// Greets the firmware until it answers. Gives up after silence for one timeout, or after other
    /// talk for [`OLD_STORY`] timeouts; opens the port again when the line fails. A greeting ends
    /// whatever the firmware is doing.
    pub fn hello(&mut self) -> anyhow::Result<Firmware> {
        let port = self.port;
        let start = Instant::now();
        self.heard = start;
        let mut failure = None;
        while self.heard.elapsed() < self.timeout {
            ensure!(!stopped(), "port {port}: interrupted");
            ensure!(
                start.elapsed() < OLD_STORY * self.timeout,
                "port {port}: the board talks, but has not answered for {} s. Is the line to it connected?",
                start.elapsed().as_secs()
            );
            match self.try_hello() {
                Ok(Some((version, firmware))) => {
                    ensure!(
                        version == VERSION,
                        "{port}: the firmware speaks version {version} of the protocol and this program {VERSION}: \
                         build both from the same sources"
                    );
                    return Ok(firmware);
                }
                Ok(None) => {}
                Err(e) => {
                    std::thread::sleep(POLL);
                    match open_line(port, self.baud) {
                        Ok(line) => self.line = line,
                        Err(e) => failure = Some(e),
                    }
                    failure = failure.or(Some(e.into()));
                }
            }
        }
        let silence = format!(
            "port {port}: no answer within {} s. Is the image `link` running, and does --baud {} fit the board?",
            self.timeout.as_secs(),
            self.baud
        );
        Err(failure.map_or_else(|| anyhow::anyhow!(silence.clone()), |e| e.context(silence.clone())))
    }

    fn try_hello(&mut self) -> io::Result<Option<(u8, Firmware)>> {
        self.send(Request::Hello)?;
        let (id, deadline) = (self.id, Instant::now() + PROMPTLY);
        while let Some(message) = self.receive(deadline)? {
            if message.id == id
                && let Reply::Ready(info) = message.body
            {
                let firmware = Firmware {
                    board: printable(info.board),
                    kernels: printable(info.kernels),
                    model: info.model,
                    max_seq: info.max_seq as usize,
                    kv_int8: info.kv_int8,
                };
                return Ok(Some((info.version, firmware)));
            }
        }
        Ok(None)
    }

    /// Shows a whole story, whatever happens on the line, and returns its tokens.
    pub fn story(&mut self, request: Request<'_>, firmware: &Firmware) -> anyhow::Result<(Vec<u32>, Statistics)> {
        let mut out = TextOut::new(io::stdout().lock());
        let mut tokens = Vec::new();
        let mut attempts = 0; // since the last one that brought a new token
        STORY.store(COMING, Relaxed);
        loop {
            let before = tokens.len();
            let trouble = match self.tell(request, firmware.max_seq, &mut tokens, &mut out) {
                Ok(statistics) => {
                    let _ = STORY.compare_exchange(COMING, NONE, Relaxed, Relaxed);
                    out.finish()?;
                    return Ok((tokens, statistics));
                }
                Err(Trouble::Passing(trouble)) => trouble,
                Err(Trouble::Lasting(e)) if tokens.is_empty() => return Err(e),
                Err(Trouble::Lasting(e)) => {
                    out.finish()?;
                    return Err(e);
                }
            };
            let n = tokens.len();
            ensure!(!stopped(), "port {}: {trouble} after {n} tokens, when the story was to end", self.port);
            attempts = if n > before { 1 } else { attempts + 1 };
            ensure!(
                attempts < ATTEMPTS,
                "port {}: {trouble} after {n} tokens; gave up after {ATTEMPTS} attempts",
                self.port
            );
            writeln!(io::stderr(), "\nwarning: {trouble} after {n} tokens; asking for the rest")?;
            ensure!(self.hello()? == *firmware, "port {}: other firmware answers now", self.port);
        }
    }

    /// Makes one attempt; `tokens` were shown by earlier ones. An attempt ends whatever the
    /// firmware does: only messages that take the story forward extend the deadline, and a story
    /// has no more tokens than were asked for.
    fn tell(
        &mut self,
        request: Request<'_>,
        max_seq: usize,
        tokens: &mut Vec<u32>,
        out: &mut TextOut<impl Write>,
    ) -> Result<Statistics, Trouble> {
        let passing = |trouble: &str| Err(Trouble::Passing(trouble.into()));
        self.send(request)?;
        let (id, port, timeout) = (self.id, self.port, self.timeout);
        let most = if let Request::Tell { steps, .. } = request { max_seq.min(steps as usize) } else { 0 };
        let mut deadline = Instant::now() + PROMPTLY;
        let mut accepted = false;
        let mut next = 0; // the position that has not been told in this attempt
        let mut stop_sent = None; // the time of the last request to stop, which may be lost
        loop {
            if stopped() && stop_sent.is_none_or(|at: Instant| at.elapsed() > PROMPTLY) {
                self.send(Request::Stop)?;
                stop_sent = Some(Instant::now());
            }
            let Some(message) = self.receive(deadline.min(Instant::now() + POLL))? else {
                if Instant::now() < deadline {
                    continue;
                }
                let silence = format!("nothing came for {} s", timeout.as_secs());
                return passing(if accepted { &silence } else { "the request was not answered" });
            };
            let answer = match message.body {
                Reply::Accepted => !accepted,
                Reply::Token { pos, .. } => pos as usize >= next,
                Reply::Ready(_) => false,
                Reply::Done(_) | Reply::Failed { .. } => true,
            };
            if answer && message.id == id {
                deadline = Instant::now() + timeout;
            }
            match message {
                Message { id: 0, body: Reply::Ready(_) } => return passing("the firmware started anew"),
                Message { id: other, .. } if other != id => {} // an answer to an earlier request
                Message { body: Reply::Token { pos, .. }, .. } if pos as usize >= most => {
                    self.send(Request::Stop)?;
                    return Err(Trouble::Lasting(anyhow::anyhow!(
                        "port {port}: the firmware goes on after the {most} positions that were asked for"
                    )));
                }
                Message { body: Reply::Token { pos, token, text }, .. } => match tokens.get(pos as usize) {
                    Some(&before) if before == token => next = next.max(pos as usize + 1),
                    Some(before) => {
                        return Err(Trouble::Lasting(anyhow::anyhow!(
                            "port {port}: token {pos} was {before} before the interruption and is {token} now: the \
                             firmware computes wrong"
                        )));
                    }
                    None if pos as usize == tokens.len() => {
                        tokens.push(token);
                        next = tokens.len();
                        // An error of standard output, not of the line.
                        out.push(text).map_err(|e| Trouble::Lasting(e.into()))?;
                    }
                    None => return passing("a frame was lost"),
                },
                Message { body: Reply::Done(statistics), .. } => {
                    let told = statistics.positions.saturating_sub(u32::from(statistics.ended)) as usize;
                    return if tokens.len() != told { passing("a frame was lost") } else { Ok(statistics) };
                }
                Message { body: Reply::Failed { message, value }, .. } => {
                    let (message, value) =
                        (printable(message), value.map_or(String::new(), |value| format!(" {value}")));
                    return Err(Trouble::Lasting(anyhow::anyhow!("port {port}: the firmware says: {message}{value}")));
                }
                Message { body: Reply::Ready(_), .. } => {}
                Message { body: Reply::Accepted, .. } => accepted = true,
            }
        }
    }
}

/// The words of a board without control characters: a board must not drive the terminal.
fn printable(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).collect()
}

fn open_line(port: &str, baud: u32) -> anyhow::Result<Box<dyn Line>> {
    if let Some(address) = port.strip_prefix("tcp:") {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(POLL))?;
        stream.set_nodelay(true)?;
        return Ok(Box::new(stream));
    }
    Ok(Box::new(serialport::new(port, baud).timeout(POLL).open()?))
}
