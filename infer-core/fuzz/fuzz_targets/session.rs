//! Any bytes as a session file of `infer-cli chat`: refused, or a sequence that goes on. A file
//! that was not changed goes on with the bits of the session that wrote it.
#![no_main]

use std::io::Write;
use std::sync::LazyLock;

use infer_core::format::{Header, Version, write};
use infer_core::{Buffers, Config, Error, HASH_START, KvType, Limits, Model, Sampler, Serial, Session, hash_bytes};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use serde::{Deserialize, Serialize};

/// The layout of the file is infer-cli's.
#[path = "../../../infer-cli/src/commands/chat/file.rs"]
mod file;

/// Tokens that the model knows.
const VOCAB: usize = 16;
/// Positions of the session that writes the file, and the number of those that it uses.
const CONTEXT: usize = 24;
const READ: usize = 11;

/// The parts of the file's JSON object that matter to a session.
#[derive(Serialize, Deserialize)]
struct Contents {
    int8: bool,
    /// Positions of the session that takes the file up.
    context: u8,
    penalty: f32,
    conversation: Conversation,
}

#[derive(Serialize, Deserialize)]
struct Conversation {
    tokens: Vec<u32>,
    cached: usize,
}

static MODEL: LazyLock<Vec<u32>> = LazyLock::new(model);
/// The files of two sessions, with KV caches of f32 and int8, and the tokens that follow there.
static SAVED: LazyLock<[(Vec<u8>, Vec<u32>); 2]> = LazyLock::new(|| [saved(false), saved(true)]);

fuzz_target!(|bytes: &[u8]| {
    let Ok((json, kv)) = file::parts(bytes) else { return };
    let Ok(Contents { int8, context, penalty, conversation }) = serde_json::from_slice(json) else { return };
    let Some(tokens) = conversation.tokens.get(..conversation.cached) else { return };
    let context = 1 + usize::from(context) % CONTEXT;
    let mut buffers = buffers(int8, context);
    let kv_bytes = buffers.plan().kv_bytes();
    let mut session = session(&mut buffers);
    session.penalize_repeats(penalty, 4);
    session.read(&[1]).unwrap(); // forgotten now

    let (mut asked, mut is_empty) = (0, true);
    let resumed = file::load(kv, |load| {
        let resumed = session.resume(tokens, |stretch| {
            asked += stretch.len();
            load(stretch)
        });
        is_empty = resumed.is_err(); // false where the file has more than was asked for
        resumed
    });
    assert!(asked as u64 <= kv_bytes, "{asked} bytes for a cache of {kv_bytes}");
    assert_eq!(session.next_token(), Err(Error::NotReady));
    if is_empty {
        assert_eq!(session.pos(), 0);
        session.penalize_repeats(1.0, 0);
        assert_eq!(follow(&mut session, 1), follow(&mut self::session(&mut self::buffers(int8, context)), 1));
        return;
    }
    assert_eq!(session.pos(), tokens.len());
    if resumed.is_ok() {
        let mut again = Vec::new();
        session.save(tokens.len(), |bytes| again.write_all(bytes)).unwrap();
        assert_eq!(again, kv);
    }
    let told = follow(&mut session, context - tokens.len());
    assert!(session.pos() <= context);
    if let Some((_, want)) = SAVED.iter().find(|(file, _)| file == bytes) {
        assert_eq!(told.as_ref(), Ok(want));
    }
});

// Without this no search gets past the checksum. An empty corpus begins with a file that a session
// wrote.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let (whole, _) = &SAVED[seed as usize % 2];
    let mut size = size;
    if size < 32 && whole.len() <= max_size {
        data[..whole.len()].copy_from_slice(whole);
        if seed.is_multiple_of(16) {
            return whole.len();
        }
        size = whole.len();
    }
    let size = fuzzer_mutate(data, size, max_size);
    if let Some((body, sum)) = data[..size].split_last_chunk_mut() {
        *sum = hash_bytes(HASH_START, body).to_le_bytes();
    }
    size
});

/// Reads and picks up to `n` tokens.
fn follow(session: &mut Session<'_>, n: usize) -> Result<Vec<u32>, Error> {
    let mut next = 2;
    (0..n)
        .map(|_| {
            next = session.next_after(&[next])?;
            assert!((next as usize) < VOCAB);
            Ok(next)
        })
        .collect()
}

fn saved(int8: bool) -> (Vec<u8>, Vec<u32>) {
    let mut buffers = buffers(int8, CONTEXT);
    let mut session = session(&mut buffers);
    let tokens: Vec<u32> = (1..).take(READ).collect();
    session.read(&tokens).unwrap();
    let conversation = Conversation { tokens, cached: READ };
    let contents = Contents { int8, context: (CONTEXT - 1) as u8, penalty: 1.0, conversation };
    let mut bytes = Vec::new();
    let json = serde_json::to_vec(&contents).unwrap();
    file::write(&mut bytes, &json, |out| session.save(READ, |bytes| out.write_all(bytes))).unwrap();
    let next = follow(&mut session, CONTEXT - READ).unwrap();
    (bytes, next)
}

fn session(buffers: &mut Buffers) -> Session<'_> {
    let model = Model::from_bytes(bytemuck::cast_slice(&MODEL)).unwrap();
    Session::new(model, buffers, &Serial, Sampler::new(0.0, 0.0, 1).unwrap()).unwrap()
}

/// Full of numbers that must not matter.
fn buffers(int8: bool, context: usize) -> Buffers {
    let limits = Limits::new(context).with_batch(3).with_kv(if int8 { KvType::Q8 } else { KvType::F32 });
    let mut buffers = Buffers::new(&config(), limits).unwrap();
    buffers.fill(f32::NAN, -128);
    buffers
}

fn config() -> Config {
    Config::new(8, 12, 2, 2, VOCAB, CONTEXT).with_kv_heads(1)
}

/// A model file with random weights, aligned.
fn model() -> Vec<u32> {
    let header = Header::new(Version::V1, config());
    let layout = header.layout().unwrap();
    let (mut file, mut random) = (Vec::new(), 1u64);
    write(&mut file, &header, |name, _| {
        let n = layout.get(name).map_or(0, |tensor| tensor.rows * tensor.cols);
        Ok((0..n).map(|_| uniform(&mut random)).collect())
    })
    .unwrap();
    file.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

/// From -1 to 1, by xorshift64.
fn uniform(random: &mut u64) -> f32 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}
