use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tests::shared;

use crate::{assert_fails, scratch, text, trainer};

const ARCHIVE: &str = "/datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz";
const TOKENIZER: &str = "/karpathy/llama2.c/master/tokenizer.bin";

/// The faults of a server.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Each connection breaks after this many bytes.
    breaks_after: Option<usize>,
    ignores_ranges: bool,
    /// The server keeps the connection open where it would break.
    stalls: bool,
    /// The server answers a range with the beginning of the file, and gives the length of the
    /// range or of the file.
    lies_about_ranges: Option<Lie>,
    /// The server sends without end and gives no length.
    endless: bool,
    /// The server promises this many bytes.
    promises: Option<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Lie {
    RightLength,
    TooLong,
}

/// The path and the Range header of each request.
type Asked = Mutex<Vec<(String, Option<String>)>>;

/// A server on the loopback address that runs as long as the test and records its requests.
struct Server {
    address: String,
    asked: Arc<Asked>,
}

impl Server {
    fn start(files: impl IntoIterator<Item = (&'static str, Vec<u8>)>, faults: Faults) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (files, list): (HashMap<_, _>, _) = (files.into_iter().collect(), asked.clone());
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                // A client may go away at any time.
                let answered = answer(stream.unwrap(), &files, faults, &list);
                kept.extend(answered.ok().filter(|_| faults.stalls));
            }
        });
        Server { address, asked }
    }

    fn ranges(&self) -> Vec<Option<String>> {
        self.asked.lock().unwrap().iter().map(|(_, range)| range.clone()).collect()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &HashMap<&str, Vec<u8>>,
    faults: Faults,
    asked: &Asked,
) -> std::io::Result<TcpStream> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let headers: Vec<String> = lines.map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
    let path = request.split(' ').nth(1).unwrap_or_default().to_string();
    let range = headers.iter().find_map(|line| line.to_lowercase().strip_prefix("range: ").map(String::from));
    asked.lock().unwrap().push((path.clone(), range.clone()));
    let Some(file) = files.get(path.as_str()) else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        return Ok(stream);
    };
    if faults.endless {
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        loop {
            stream.write_all(file)?;
        }
    }
    let total = file.len();
    let start = range.filter(|_| !faults.ignores_ranges);
    let start =
        start.map(|range| range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse::<usize>().unwrap());
    let (status, from) = match start {
        Some(start) if start >= total => (format!("416 None\r\nContent-Range: bytes */{total}"), total),
        Some(start) => (format!("206 Part\r\nContent-Range: bytes {start}-{}/{total}", total - 1), start),
        None => ("200 OK".into(), 0),
    };
    let body = match faults.lies_about_ranges {
        None => &file[from..],
        Some(Lie::RightLength) => &file[..total - from],
        Some(Lie::TooLong) => file,
    };
    let length = faults.promises.unwrap_or(body.len());
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(&body[..faults.breaks_after.unwrap_or(body.len()).min(body.len())])?;
    Ok(stream)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn noise(n: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(3);
    (0..n).map(|_| rng.u8(..)).collect()
}

fn download(name: &str, server: &Server, out: &Path, more: &[&str]) -> Output {
    trainer(&["download", name, "--base-url", &server.address, "--out", text(out)]).args(more).output().unwrap()
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let file = noise(250_000);
    let server =
        Server::start([(TOKENIZER, file.clone())], Faults { breaks_after: Some(100_000), ..Faults::default() });
    let folder = scratch("download-broken");
    succeeds(&download("tokenizer", &server, &folder, &["--sha256", &sha256(&file)]));
    assert_eq!(fs::read(folder.join("tokenizer.bin")).unwrap(), file);
    assert_eq!(server.ranges(), [None, Some("bytes=100000-".into()), Some("bytes=200000-".into())]);
    // The file is there already: there are no more requests.
    succeeds(&download("tokenizer", &server, &folder, &[]));
    assert_eq!(server.ranges().len(), 3);
}

#[test]
fn what_a_killed_process_left_is_taken_up() {
    let file = noise(50_000);
    let folder = scratch("download-killed");
    for (have, ignores_ranges) in [(20_000, false), (50_000, false), (60_000, false), (20_000, true)] {
        let server = Server::start([(TOKENIZER, file.clone())], Faults { ignores_ranges, ..Faults::default() });
        let _ = fs::remove_file(folder.join("tokenizer.bin"));
        let mut part = file.clone();
        part.resize(have, 0);
        fs::write(folder.join("tokenizer.bin.part"), part).unwrap();
        succeeds(&download("tokenizer", &server, &folder, &["--sha256", &sha256(&file)]));
        assert_eq!(fs::read(folder.join("tokenizer.bin")).unwrap(), file);
        assert_eq!(server.ranges()[0], Some(format!("bytes={have}-")));
        assert!(!folder.join("tokenizer.bin.part").exists());
    }
}

#[test]
fn a_stalled_connection_counts_as_broken() {
    let file = noise(250_000);
    let faults = Faults { breaks_after: Some(100_000), stalls: true, ..Faults::default() };
    let server = Server::start([(TOKENIZER, file.clone())], faults);
    let folder = scratch("download-stalled");
    succeeds(&download("tokenizer", &server, &folder, &["--sha256", &sha256(&file), "--timeout", "1"]));
    assert_eq!(fs::read(folder.join("tokenizer.bin")).unwrap(), file);
    assert_eq!(server.ranges(), [None, Some("bytes=100000-".into()), Some("bytes=200000-".into())]);
}

#[test]
fn a_server_that_never_gets_to_the_end() {
    let file = noise(250_000);
    let again = Some("bytes=100000-".to_string());
    for (name, ignores_ranges, asked) in [("from-0", true, 5), ("from-there", false, 5)] {
        let folder = scratch(&format!("download-no-end-{name}"));
        fs::write(folder.join("tokenizer.bin.part"), &file[..100_000]).unwrap();
        let breaks_after = Some(if ignores_ranges { 90_000 } else { 0 });
        let faults = Faults { breaks_after, ignores_ranges, ..Faults::default() };
        let server = Server::start([(TOKENIZER, file.clone())], faults);
        let output = download("tokenizer", &server, &folder, &["--sha256", &sha256(&file)]);
        assert_fails(&output, &["5 attempts", "100000 bytes are kept"]);
        assert_eq!(server.ranges(), vec![again.clone(); asked]);
        assert_eq!(fs::read(folder.join("tokenizer.bin.part")).unwrap(), file[..100_000], "{name}");
    }
}

#[test]
fn a_server_that_sends_something_else_for_a_range() {
    let file = noise(250_000);
    for (lie, words) in [(Lie::RightLength, "is not what it should be"), (Lie::TooLong, "sends more than 250000 bytes")]
    {
        let folder = scratch("download-lies");
        fs::write(folder.join("tokenizer.bin.part"), &file[..100_000]).unwrap();
        let faults = Faults { lies_about_ranges: Some(lie), ..Faults::default() };
        let server = Server::start([(TOKENIZER, file.clone())], faults);
        assert_fails(&download("tokenizer", &server, &folder, &["--sha256", &sha256(&file)]), &[words]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing of it is kept");
        assert_eq!(server.ranges().len(), 1);
    }
}

#[test]
fn a_file_larger_than_it_can_be() {
    for faults in
        [Faults { endless: true, ..Faults::default() }, Faults { promises: Some(1 << 40), ..Faults::default() }]
    {
        let server = Server::start([(TOKENIZER, noise(1 << 20))], faults);
        let folder = scratch("download-large");
        assert_fails(&download("tokenizer", &server, &folder, &[]), &["bytes", "is it another"]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

#[test]
fn two_downloads_of_one_file() {
    let folder = scratch("download-two");
    let part = fs::File::create(folder.join("tokenizer.bin.part")).unwrap();
    part.lock().unwrap(); // another download does the same
    let server = Server::start([(TOKENIZER, noise(1000))], Faults::default());
    let output = download("tokenizer", &server, &folder, &[]);
    assert_fails(&output, &["tokenizer.bin.part", "another `trainer download`"]);
    assert!(server.ranges().is_empty());
}

#[test]
fn something_else_under_the_address() {
    let server = Server::start([(TOKENIZER, noise(1000))], Faults::default());
    let folder = scratch("download-checksum");
    let output = download("tokenizer", &server, &folder, &[]);
    let known = "50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361";
    assert_fails(&output, &["tokenizer.bin", &sha256(&noise(1000)), known, "--base-url"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn servers_that_fail() {
    let server = Server::start([(TOKENIZER, noise(1000))], Faults { breaks_after: Some(0), ..Faults::default() });
    let folder = scratch("download-fails");
    let output = download("stories260K", &server, &folder, &[]);
    assert_fails(&output, &["/karpathy/tinyllamas/resolve/main/stories260K/stories260K.bin", "404"]);
    let output = download("tokenizer", &server, &folder, &[]);
    assert_fails(&output, &["tokenizer.bin", "5 attempts", "nothing has come"]);
    let output = trainer(&["download", "tokenizer", "--base-url", "nowhere", "--out", text(&folder)]).output().unwrap();
    assert_fails(&output, &["nowhere/karpathy", "nothing has come"]);
}

/// A limit of 64 blocks of 512 bytes for the file size stands for a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_keeps_what_has_come() {
    let file = noise(100_000);
    let server = Server::start([(TOKENIZER, file.clone())], Faults::default());
    let folder = scratch("download-full");
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
    let program = env!("CARGO_BIN_EXE_trainer");
    let args = ["download", "tokenizer", "--base-url", &server.address, "--out", text(&folder)];
    let output = Command::new("sh").args(["-c", limited, "sh", program]).args(args).output().unwrap();
    assert_fails(&output, &["writing", "tokenizer.bin.part", "File too large", "run this again"]);
    let part = fs::read(folder.join("tokenizer.bin.part")).unwrap();
    assert!(!part.is_empty() && file.starts_with(&part));
    succeeds(&download("tokenizer", &server, &folder, &["--sha256", &sha256(&file)]));
    assert_eq!(server.ranges(), [None, Some(format!("bytes={}-", part.len()))]);
}

#[test]
fn an_archive_is_unpacked() {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, stories) in [("data00.json", "[{\"story\": \"a\"}]"), ("data01.json", "[{\"story\": \"b\"}]")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(stories.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, stories.as_bytes()).unwrap();
    }
    let archive = archive.into_inner().unwrap().finish().unwrap();
    let cut = archive[..archive.len() / 2].to_vec();
    let folder = scratch("download-archive");
    // A damaged archive with the right checksum leaves no folder that looks whole.
    let server = Server::start([(ARCHIVE, cut.clone())], Faults::default());
    let output = download("tinystories", &server, &folder, &["--sha256", &sha256(&cut)]);
    assert_fails(&output, &["unpacking", "TinyStories_all_data.tar.gz"]);
    assert!(!folder.join("TinyStories_all_data").exists());
    fs::remove_file(folder.join("TinyStories_all_data.tar.gz")).unwrap();

    let server = Server::start([(ARCHIVE, archive.clone())], Faults::default());
    succeeds(&download("tinystories", &server, &folder, &["--sha256", &sha256(&archive)]));
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["TinyStories_all_data"]);
    assert_eq!(fs::read(folder.join("TinyStories_all_data/data01.json")).unwrap(), b"[{\"story\": \"b\"}]");
}

/// The known checksums are those of the published files.
#[test]
fn published_files() {
    let Some(model) = shared::bytes("data/models/stories260K/stories260K.bin") else { return };
    let tok512 = shared::bytes("data/models/stories260K/tok512.bin").unwrap();
    let llama2 = shared::bytes("data/tokenizers/llama2/tokenizer.bin").unwrap();
    let files = [
        ("/karpathy/tinyllamas/resolve/main/stories260K/stories260K.bin", model.clone()),
        ("/karpathy/tinyllamas/resolve/main/stories260K/tok512.bin", tok512.clone()),
        (TOKENIZER, llama2.clone()),
    ];
    let server = Server::start(files, Faults::default());
    let folder = scratch("download-published");
    succeeds(&download("stories260K", &server, &folder, &[]));
    succeeds(&download("tokenizer", &server, &folder, &[]));
    assert_eq!(fs::read(folder.join("stories260K/stories260K.bin")).unwrap(), model);
    assert_eq!(fs::read(folder.join("stories260K/tokenizer.bin")).unwrap(), tok512);
    assert_eq!(fs::read(folder.join("tokenizer.bin")).unwrap(), llama2);
}
