//! Downloads files whole, checks them, and goes on where an earlier download stopped.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::Agent;

use crate::data::corpus;
use crate::data::published::Item;
use crate::data::shards::hex;
use crate::io::files::{UNFINISHED, folder_of, remove_unfinished};
use crate::report::output::note;

/// A download gives up after this many connections in a row that break early.
const ATTEMPTS: u32 = 5;
/// A connection breaks early if it brings fewer bytes than this.
const PROGRESS: u64 = 1 << 16;
/// The pause after the first broken connection; it doubles with each further one.
const PAUSE: Duration = Duration::from_millis(250);
/// The source and the destination of downloads.
pub struct Source<'a> {
    /// Folder for the files.
    pub out: &'a Path,
    /// Address of a mirror, to replace the sites of the items.
    pub base_url: Option<&'a str>,
    /// Expected SHA-256, to replace that of the item.
    pub sha256: Option<&'a str>,
    /// A connection counts as broken after this time without a byte.
    pub timeout: Duration,
}

/// Fetches and unpacks the items that are not there yet.
///
/// # Errors
/// Names the file that could not be fetched, and the part of it that is kept.
pub fn download(items: &[Item], source: &Source<'_>) -> anyhow::Result<()> {
    let timeout = Some(source.timeout);
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(timeout)
        .timeout_recv_response(timeout)
        .timeout_per_read(timeout)
        .build()
        .into();
    for item in items {
        let base = source.base_url.unwrap_or(item.base);
        let url = format!("{}/{}", base.trim_end_matches('/'), item.path);
        let file = source.out.join(item.to);
        let unpacked = file.to_str().and_then(|name| name.strip_suffix(".tar.gz")).map(PathBuf::from);
        let result = unpacked.as_ref().unwrap_or(&file);
        if result.exists() {
            note(format!("{} is there already", result.display()));
            continue;
        }
        if !file.exists() {
            fetch(&agent, &url, &file, source.sha256.or(item.sha256), item.most_mb << 20)?;
        }
        if let Some(folder) = &unpacked {
            unpack(&file, folder)?;
            fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
        note(result.display());
    }
    Ok(())
}

/// Downloads into `file.part`, behind the bytes that are there, checks the whole and renames it.
fn fetch(agent: &Agent, url: &str, file: &Path, sha256: Option<&str>, most: u64) -> anyhow::Result<()> {
    let mut part = Part::open(file)?;
    if let Err(e) = fill(agent, url, &mut part, most, &file.display().to_string()) {
        let kept = match part.len() {
            0 => {
                _ = fs::remove_file(&part.path);
                "nothing has come".into()
            }
            bytes => format!("{bytes} bytes are kept in {}: run this again to go on", part.path.display()),
        };
        return Err(e.context(format!("downloading {url} ({kept})")));
    }
    let bytes = part.len();
    match sha256.map(String::from).or_else(|| published_sha256(url)) {
        Some(expected) => {
            let found = sha256_of(&part.path)?;
            if !found.eq_ignore_ascii_case(&expected) {
                fs::remove_file(&part.path).with_context(|| format!("removing {}", part.path.display()))?;
                bail!(
                    "{url} is not what it should be: the SHA-256 of its {bytes} bytes is {found}, not {expected}. It was \
                     deleted; download it again, or from another --base-url"
                );
            }
        }
        None => note(format!("{}: {bytes} bytes, no checksum is known", file.display())),
    }
    fs::rename(&part.path, file).with_context(|| format!("renaming {} to {}", part.path.display(), file.display()))
}

/// The part of a file that has been downloaded. One process at a time writes it.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn open(whole: &Path) -> anyhow::Result<Part> {
        let folder = folder_of(whole);
        fs::create_dir_all(folder).with_context(|| format!("folder {}", folder.display()))?;
        let mut path = whole.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        ensure!(
            !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
            "{}: another `trainer download` is at work on it",
            path.display()
        );
        Ok(Part { path, file })
    }

    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }
}

/// Connects until the file is whole, or too many connections in a row have broken early.
fn fill(agent: &Agent, url: &str, part: &mut Part, most: u64, name: &str) -> anyhow::Result<()> {
    let progress = corpus::progress(0).with_message(name.to_string());
    let (mut attempt, mut furthest) = (1, part.len());
    while let Transfer::Broken(e) = transfer(agent, url, part, most, &progress)? {
        attempt += 1;
        if part.len() >= furthest + PROGRESS {
            (attempt, furthest) = (1, part.len());
        }
        if attempt > ATTEMPTS {
            return Err(e.context(format!("{ATTEMPTS} attempts")));
        }
        std::thread::sleep(PAUSE * (1 << (attempt - 1)));
    }
    progress.finish_and_clear();
    Ok(())
}

enum Transfer {
    Whole,
    /// The server or the connection failed: another attempt may help.
    Broken(anyhow::Error),
}

/// Makes one request for the missing bytes. An error is final: another attempt would not help.
fn transfer(agent: &Agent, url: &str, part: &mut Part, most: u64, progress: &ProgressBar) -> anyhow::Result<Transfer> {
    let have = part.len();
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(e @ (ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_))) => return Err(e.into()),
        Err(e) => return Ok(Transfer::Broken(e.into())),
    };
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    // The header is "bytes 7-99/100" for a part, "bytes */100" if no byte is missing.
    let range = header("content-range").and_then(|range| range.strip_prefix("bytes ")?.split_once('/'));
    let (start, total) = match (response.status().as_u16(), range) {
        (206, Some((range, total))) if range.split('-').next() == Some(&have.to_string()) => (have, total.parse().ok()),
        // The server sends the whole file. It overwrites the bytes that are there without deleting
        // them first: if the connection breaks again, they are still good.
        (200, _) => (0, header("content-length").and_then(|length| length.parse().ok())),
        (416, Some((_, total))) if total.parse() == Ok(have) => return Ok(Transfer::Whole),
        (206 | 416, _) => {
            part.file.set_len(0)?;
            return Ok(Transfer::Broken(anyhow!("what is there from an earlier download is no part of the file")));
        }
        (status @ (408 | 429 | 500..), _) => return Ok(Transfer::Broken(anyhow!("the server answers {status}"))),
        (status, _) => bail!("the server answers {status}"),
    };
    let end: u64 = total.unwrap_or(most);
    ensure!(end <= most, "the server offers {end} bytes, and this file has {most} at most: is it another one?");
    if total.is_some() {
        progress.set_length(end);
    }
    progress.set_position(start);

    let writing = || format!("writing {}", part.path.display());
    part.file.seek(SeekFrom::Start(start)).with_context(writing)?;
    let mut body = response.into_body().into_reader();
    let mut at = start;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => return Ok(Transfer::Broken(e.into())),
        };
        if at + n as u64 > end {
            part.file.set_len(0).with_context(writing)?;
            bail!("the server sends more than {end} bytes: is it another file?");
        }
        part.file.write_all(&buffer[..n]).with_context(|| format!("{} at byte {at}", writing()))?;
        at += n as u64;
        progress.set_position(at);
    }
    if let Some(total) = total.filter(|&total| total != at) {
        return Ok(Transfer::Broken(anyhow!("the connection ended at byte {at} of {total}")));
    }
    part.file.set_len(at).and_then(|()| part.file.sync_all()).with_context(writing)?;
    Ok(Transfer::Whole)
}

/// The SHA-256 that Hugging Face publishes of a large file, in the answer that redirects to it.
fn published_sha256(url: &str) -> Option<String> {
    let agent: Agent =
        Agent::config_builder().max_redirects(0).timeout_global(Some(Duration::from_secs(30))).build().into();
    let response = agent.head(url).call().ok()?;
    let tag = response.headers().get("x-linked-etag")?.to_str().ok()?.trim_matches('"');
    (tag.len() == 64).then(|| tag.to_string())
}

fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let in_file = || format!("checking {}", path.display());
    let mut file = File::open(path).with_context(in_file)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(in_file)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Unpacks an archive into a temporary folder and renames that when everything is there.
fn unpack(archive: &Path, folder: &Path) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let parent = folder_of(folder);
        remove_unfinished(parent)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // open to all, as other new folders; tempfile makes them private
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = builder.tempdir_in(parent)?;
        #[cfg(unix)] // the lock tells `remove_unfinished` that the folder is in use
        let _lock = File::open(temporary.path()).inspect(|folder| _ = folder.lock());
        let file = File::open(archive)?;
        let progress = corpus::progress(file.metadata()?.len()).with_message("unpacking");
        tar::Archive::new(flate2::read::GzDecoder::new(progress.wrap_read(file))).unpack(temporary.path())?;
        progress.finish_and_clear();
        fs::rename(temporary.keep(), folder)?;
        Ok(())
    };
    let (archive, folder) = (archive.display(), folder.display());
    attempt()
        .with_context(|| format!("unpacking {archive} to {folder} (if it is damaged, delete it and run this again)"))
}
