//! The build script writes the files that an image carries: the board's code and memory map, model,
//! tokenizer, a checksum, and the hashes of the logits that the host computes.
//!
//! Settings are environment variables: BOARD (a folder of `boards/`), MODEL and TOKENIZER (files,
//! or MODEL=random-f32 or random-int8 for weights made here), and DISPLACED=1 (see `displaced.x`).

mod memory;
#[path = "src/random.rs"]
mod random;
#[allow(dead_code)] // the images use what is not used here
#[path = "src/settings.rs"]
mod settings;
#[allow(dead_code)]
#[path = "src/story.rs"]
mod story;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use infer_core::format::{Header, Version};
use infer_core::{
    Buffers, Config, Engine, HASH_START, KvType, MergeSlot, ModelBytes, OwnedTokenizer, ProbIndex, Tokenizer,
    hash_bytes, shapes, tokenizer,
};

/// The project's own model.
const DEFAULT_MODEL: &str = "../models/firmware/model.bin";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let map = board(&out)?;

    let (model, tokenizer) = model_and_tokenizer()?;
    check_memory(&map, &model, &tokenizer)?;
    fs::write(out.join("model.bin"), &model)?;
    fs::write(out.join("tokenizer.bin"), &tokenizer)?;
    fs::write(out.join("checksum"), hash_bytes(HASH_START, &model).to_le_bytes())?;
    let [story, bench] = host_hashes(&model, &tokenizer)?;
    fs::write(out.join("story.hash"), story.to_le_bytes())?;
    fs::write(out.join("bench.hash"), bench.to_le_bytes())?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=memory.rs");
    println!("cargo:rerun-if-changed=src/random.rs");
    println!("cargo:rerun-if-changed=src/settings.rs");
    println!("cargo:rerun-if-changed=src/story.rs");
    Ok(())
}

/// Hands the board's code to the compiler and its memory map, which it returns, to the linker.
fn board(out: &Path) -> Result<String, Box<dyn Error>> {
    let default = if env::var("TARGET")?.starts_with("thumbv8m") { "mps3-an547" } else { "mps2-an386" };
    let board = setting("BOARD").unwrap_or(default.into());
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("boards").join(&board);
    let (code, map) = (folder.join("board.rs"), folder.join("memory.x"));
    if !code.is_file() || !map.is_file() {
        return Err(format!("BOARD={board}: {} and {} must exist", code.display(), map.display()).into());
    }
    println!("cargo:rerun-if-changed={}", map.display());
    fs::write(out.join("board.rs"), format!("#[allow(unsafe_code)]\n#[path = {code:?}]\npub mod board;\n"))?;
    let text = fs::read_to_string(map)?;
    fs::write(out.join("memory.x"), &text)?;
    for script in ["displaced.x", "sections.x"] {
        println!("cargo:rerun-if-changed={script}");
        fs::copy(script, out.join(script))?;
    }
    println!("cargo:rustc-link-search={}", out.display());
    if setting("DISPLACED").is_some() {
        println!("cargo:rustc-link-arg-bins=-Tdisplaced.x"); // takes the kernels before cortex-m-rt's link.x can
    }
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=-Tsections.x");
    Ok(text)
}

/// Refuses a model that the board has no room for.
fn check_memory(map: &str, model: &[u8], tokenizer: &[u8]) -> Result<(), Box<dyn Error>> {
    let config = Config::from_header(model).map_err(|e| format!("MODEL: {e}"))?;
    let plan = config.plan(story::limits(config.seq_len)).map_err(|e| format!("MODEL: {e}"))?;
    let value = if let KvType::F32 = settings::KV { 4 } else { 1 };
    let prompt = Tokenizer::max_tokens(settings::MAX_PROMPT) * (size_of::<MergeSlot>() + size_of::<u32>());
    let hot = 4 * plan.hot_f32 + plan.hot_i8 + plan.sampler * size_of::<ProbIndex>();
    let cold = value * plan.kv_values + 4 * plan.kv_scales + prompt;
    let part = |what, memory, bytes| memory::Part { what, memory, bytes };
    let parts = [
        part("model and tokenizer (MODEL)", "MODEL", model.len() + tokenizer.len()),
        part("activations (HOT)", "HOT", hot),
        part("KV cache and prompt (COLD)", "COLD", cold),
        part("the stack", "RAM", memory::stack_size(map).unwrap_or(0)),
    ];
    let board = setting("BOARD").unwrap_or_else(|| "the board".into());
    memory::check(map, &parts).map_err(|e| format!("{board} is too small: {e}").into())
}

/// Reads the files that MODEL and TOKENIZER name, by default the project's own, or makes up random
/// weights.
fn model_and_tokenizer() -> Result<(Vec<u8>, Vec<u8>), Box<dyn Error>> {
    let model = setting("MODEL").unwrap_or(DEFAULT_MODEL.into());
    let header = match model.as_str() {
        "random-f32" => Header::new(Version::V0, shapes::STORIES_260K),
        "random-int8" => Header::new(Version::V2, shapes::FIRMWARE.quantized()?),
        path => {
            let beside = || Path::new(path).with_file_name("tokenizer.bin").display().to_string();
            let tokenizer = setting("TOKENIZER").unwrap_or_else(beside);
            return Ok((read("MODEL", path)?, read("TOKENIZER", &tokenizer)?));
        }
    };
    if setting("TOKENIZER").is_some() {
        return Err(format!("TOKENIZER is set, but the model is {model}, which has its own: set MODEL too").into());
    }
    let mut model = vec![0; header.layout()?.file_bytes as usize];
    random::fill_model(&header, &mut model, |_, weight| weight)?;
    Ok((model, random_tokenizer()?))
}

/// Reads an environment variable, and has cargo run this script again when it changes.
fn setting(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn read(name: &str, path: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    println!("cargo:rerun-if-changed={path}");
    // Cargo runs build scripts in the package's folder.
    fs::read(path).map_err(|e| format!("{name}={path} (relative paths start at firmware-example): {e}").into())
}

/// A vocabulary of control and byte tokens, letters, pieces that lead to the prompt's words, and
/// syllables.
fn random_tokenizer() -> std::io::Result<Vec<u8>> {
    const WORDS: [&str; 13] =
        [" O", "nc", "nce", " Once", " u", "po", "pon", " upon", " a", " t", "im", "ime", " time"];
    let mut pieces: Vec<Vec<u8>> = vec![b"<unk>".into(), b"\n<s>\n".into(), b"\n</s>\n".into()];
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>").into_bytes()));
    pieces.extend((b'a'..=b'z').chain([b' ', b'O']).map(|letter| vec![letter]));
    pieces.extend(WORDS.iter().map(|word| word.as_bytes().to_vec()));
    pieces.extend((b'a'..=b'z').flat_map(|a| "aeiou tnrs".bytes().map(move |b| vec![b'-', a, b])));
    pieces.truncate(shapes::FIRMWARE.vocab_size);
    assert_eq!(pieces.len(), shapes::FIRMWARE.vocab_size);

    let longest = pieces.iter().map(Vec::len).max().unwrap_or(0);
    let mut file = Vec::new();
    tokenizer::write(&mut file, longest as u32, (0..).map(|id| -(id as f32)).zip(pieces))?;
    Ok(file)
}

/// Computes, on the host, the hashes of the logits of the story and of the benchmark.
fn host_hashes(model: &[u8], tokenizer: &[u8]) -> Result<[u64; 2], Box<dyn Error>> {
    let config = Config::from_header(model).map_err(|e| format!("MODEL: {e}"))?;
    let model = ModelBytes::copy(model)?;
    let tokenizer = OwnedTokenizer::new(tokenizer, config.vocab_size).map_err(|e| format!("TOKENIZER: {e}"))?;
    let mut buffers = Buffers::new(&config, story::limits(config.seq_len))?;
    let most = Tokenizer::max_tokens(settings::PROMPT.len());
    let mut scratch = story::Scratch {
        candidates: &mut vec![ProbIndex::default(); buffers.plan().sampler],
        merge: &mut vec![MergeSlot::EMPTY; most],
        tokens: &mut vec![0; most],
    };
    let (model, tokenizer, engine) = (model.bytes(), tokenizer.get(), Engine::scalar());
    let request = story::Request::new(settings::PROMPT);
    let story = story::tell(model, &tokenizer, &engine, &request, buffers.state()?, &mut scratch, &mut Nobody)
        .map_err(|e| format!("MODEL: {e}"))?;
    let tokens = settings::BENCH_TOKENS.min(buffers.plan().limits.max_seq);
    Ok([story.hash, story::greedy(model, &engine, buffers.state()?, tokens, |_| ())?])
}

struct Nobody;

impl story::Listener for Nobody {
    fn text(&mut self, _: usize, _: u32, _: &[u8]) {}

    fn between_layers(&mut self) -> bool {
        true
    }
}
