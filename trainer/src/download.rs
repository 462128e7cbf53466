//! Fetches TinyStories, and the published models with their tokenizers: whole, checked, and resumed where it stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::Agent;

use crate::corpus;
use crate::files::{UNFINISHED, remove_unfinished};
use crate::shards::hex;

/// Broken connections in a row that bring nothing before it gives up, and the pause after the first.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(250);
const HUGGING_FACE: &str = "https://huggingface.co";
const GITHUB: &str = "https://raw.githubusercontent.com";

/// Downloads stories, models and tokenizers; goes on where it was stopped
#[derive(clap::Args)]
pub struct Args {
    /// What to fetch
    #[arg(value_name = "NAME", default_value = "tinystories")]
    pub names: Vec<Name>,
    /// Folder to put it in
    #[arg(long, value_name = "FOLDER", default_value = "data")]
    pub out: PathBuf,
    /// Address of a mirror, in place of https://huggingface.co and https://raw.githubusercontent.com
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// SHA-256 to expect in place of the known one, when a mirror has another edition of a single file
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
}

/// What can be fetched by name.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum Name {
    /// TinyStories as JSON shards, 1.6 GB packed
    Tinystories,
    /// A model of 260 thousand parameters and its tokenizer
    #[value(name = "stories260K")]
    Stories260K,
    /// A model of 15 million parameters and its tokenizer
    #[value(name = "stories15M")]
    Stories15M,
    /// A model of 42 million parameters and its tokenizer
    #[value(name = "stories42M")]
    Stories42M,
    /// A model of 110 million parameters and its tokenizer
    #[value(name = "stories110M")]
    Stories110M,
    /// Llama 2's tokenizer in the format of llama2.c
    Tokenizer,
}

/// One file: where it is, where it goes, and its SHA-256 where that is known.
struct Item {
    base: &'static str,
    path: String,
    to: PathBuf,
    sha256: Option<&'static str>,
}

impl Name {
    fn items(self) -> Vec<Item> {
        let model = |path: &str, to: &str, sha256| Item {
            base: HUGGING_FACE,
            path: format!("karpathy/tinyllamas/resolve/main/{path}"),
            to: to.into(),
            sha256,
        };
        let tokenizer = |to: &str| Item {
            base: GITHUB,
            path: "karpathy/llama2.c/master/tokenizer.bin".into(),
            to: to.into(),
            sha256: Some("50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361"),
        };
        match self {
            Name::Tinystories => vec![Item {
                base: HUGGING_FACE,
                path: "datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz".into(),
                to: "TinyStories_all_data.tar.gz".into(),
                sha256: Some("26cf7605aca15bc4ea6fa637256400d9d01317b28ed296172b2d1dd160cd7699"),
            }],
            Name::Stories260K => vec![
                model(
                    "stories260K/stories260K.bin",
                    "stories260K/stories260K.bin",
                    Some("b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696"),
                ),
                model(
                    "stories260K/tok512.bin",
                    "stories260K/tokenizer.bin",
                    Some("037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312"),
                ),
            ],
            Name::Stories15M => vec![
                model(
                    "stories15M.bin",
                    "stories15M/stories15M.bin",
                    Some("cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"),
                ),
                tokenizer("stories15M/tokenizer.bin"),
            ],
            Name::Stories42M => {
                vec![model("stories42M.bin", "stories42M/stories42M.bin", None), tokenizer("stories42M/tokenizer.bin")]
            }
            Name::Stories110M => vec![
                model("stories110M.bin", "stories110M/stories110M.bin", None),
                tokenizer("stories110M/tokenizer.bin"),
            ],
            Name::Tokenizer => vec![tokenizer("tokenizer.bin")],
        }
    }
}

/// Runs `trainer download`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let items: Vec<Item> = args.names.iter().flat_map(|name| name.items()).collect();
    ensure!(args.sha256.is_none() || items.len() == 1, "--sha256 is for a single file, and these are {}", items.len());
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .build()
        .into();
    for item in items {
        let base = args.base_url.as_deref().unwrap_or(item.base);
        let url = format!("{}/{}", base.trim_end_matches('/'), item.path);
        let file = args.out.join(&item.to);
        let unpacked = file.to_str().and_then(|name| name.strip_suffix(".tar.gz")).map(PathBuf::from);
        let result = unpacked.as_ref().unwrap_or(&file);
        if result.exists() {
            eprintln!("{} is there already", result.display());
            continue;
        }
        if !file.exists() {
            fetch(&agent, &url, &file, args.sha256.as_deref().or(item.sha256))?;
        }
        if let Some(folder) = &unpacked {
            unpack(&file, folder)?;
            fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
        eprintln!("{}", result.display());
    }
    Ok(())
}

/// Downloads into `file.part`, goes on with what is there, checks it and gives it its name.
fn fetch(agent: &Agent, url: &str, file: &Path, sha256: Option<&str>) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("folder {}", folder.display()))?;
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let size = || part.metadata().map_or(0, |metadata| metadata.len());
    let progress = corpus::progress(0).with_message(file.display().to_string());
    let mut attempt = 1;
    loop {
        let before = size();
        let broken = match transfer(agent, url, &part, before, &progress).with_context(|| {
            format!("downloading {url} (what has come is kept in {}: run this again)", part.display())
        })? {
            Transfer::Whole => break,
            Transfer::Broken(e) => e,
        };
        attempt = if size() > before { 1 } else { attempt + 1 };
        if attempt > ATTEMPTS {
            let kept = format!("{} bytes are kept in {}: run this again to go on", size(), part.display());
            return Err(broken.context(format!("downloading {url}, {ATTEMPTS} attempts ({kept})")));
        }
        std::thread::sleep(PAUSE * (1 << (attempt - 1)));
    }
    progress.finish_and_clear();
    match sha256.map(String::from).or_else(|| published_sha256(url)) {
        Some(expected) => {
            let found = sha256_of(&part)?;
            if !found.eq_ignore_ascii_case(&expected) {
                let bytes = size();
                fs::remove_file(&part).with_context(|| format!("removing {}", part.display()))?;
                bail!(
                    "{url} is not what it should be: the SHA-256 of its {bytes} bytes is {found}, not {expected}. It was \
                     deleted; download it again, or from another --base-url"
                );
            }
        }
        None => eprintln!("{}: {} bytes, no checksum is known", file.display(), size()),
    }
    fs::rename(&part, file).with_context(|| format!("renaming {} to {}", part.display(), file.display()))
}

enum Transfer {
    Whole,
    /// Worth another attempt: the server or the connection failed.
    Broken(anyhow::Error),
}

/// One request for what is missing from `have` bytes on. An error is final: trying again would not help.
fn transfer(agent: &Agent, url: &str, part: &Path, have: u64, progress: &ProgressBar) -> anyhow::Result<Transfer> {
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
    // "bytes 7-99/100" for a part, "bytes */100" for none.
    let range = header("content-range").and_then(|range| range.strip_prefix("bytes ")?.split_once('/'));
    let (start, total) = match (response.status().as_u16(), range) {
        (206, Some((range, total))) if range.split('-').next() == Some(&have.to_string()) => (have, total.parse().ok()),
        (200, _) => (0, header("content-length").and_then(|length| length.parse().ok())),
        (416, Some((_, total))) if total.parse() == Ok(have) => return Ok(Transfer::Whole),
        (206 | 416, _) => {
            fs::remove_file(part)?;
            return Ok(Transfer::Broken(anyhow!("what is there from an earlier download is no part of the file")));
        }
        (status @ (408 | 429 | 500..), _) => return Ok(Transfer::Broken(anyhow!("the server answers {status}"))),
        (status, _) => bail!("the server answers {status}"),
    };
    if let Some(total) = total {
        progress.set_length(total);
    }
    progress.set_position(start);

    let mut file = OpenOptions::new().create(true).append(start > 0).write(true).truncate(start == 0).open(part)?;
    let mut body = response.into_body().into_reader();
    let mut at = start;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => return Ok(Transfer::Broken(e.into())),
        };
        file.write_all(&buffer[..n]).with_context(|| format!("writing {} at byte {at}", part.display()))?;
        at += n as u64;
        progress.set_position(at);
    }
    if let Some(total) = total.filter(|&total| total != at) {
        return Ok(Transfer::Broken(anyhow!("the connection ended at byte {at} of {total}")));
    }
    file.sync_all().with_context(|| format!("writing {}", part.display()))?;
    Ok(Transfer::Whole)
}

/// Hugging Face names the SHA-256 of a large file in the answer that redirects to it.
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

/// Unpacks into a temporary folder that gets its name when everything is there.
fn unpack(archive: &Path, folder: &Path) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let parent = crate::files::folder_of(folder);
        remove_unfinished(parent)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)] // as any new folder, not only for its owner
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let temporary = builder.tempdir_in(parent)?;
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
