//! The owned layer computes what the core computes, and refuses what the system has no memory for.

use std::num::NonZeroUsize;

use infer_core::format::Version;
use infer_core::{
    BOS, Buffers, Config, Engine, Error, IndexEntry, Kernels, KvType, Limits, MAX_THREADS, MergeSlot, ModelBytes,
    OwnedTokenizer, Perplexity, Pool, Sampler, Serial, Session, Tokenizer, WeightType, default_threads, nats, penalize,
    shapes, threads_for,
};
use tests::Run;
use tests::random::{File, RandomModel, config};

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

#[test]
fn logits_do_not_depend_on_the_pool() {
    let f32_ = config(256, 512, 2, 4, 2);
    let int8 = f32_.with_weights(WeightType::Q8 { group_size: 64 });
    for (version, config) in [(Version::V1, f32_), (Version::V2, int8)] {
        let file = RandomModel::new(config, 1).to_file(version);
        let tokens: Vec<u32> = (0..40).collect();
        let want = Run::new(file.bytes(), 1).logits(&tokens).unwrap();
        for threads in [1, 2, 3] {
            let pool = pool(threads);
            for (kernels, batch) in Kernels::all().flat_map(|kernels| [(kernels, 1), (kernels, 32)]) {
                let engine = Engine::new(kernels, &pool);
                let got = Run::with_engine(file.bytes(), batch, threads, engine).logits(&tokens).unwrap();
                assert_eq!(got, want, "{}, {threads} threads, batch {batch}", kernels.name);
            }
        }
    }
}

#[test]
fn a_pool_has_a_limit() {
    let e = Pool::new(NonZeroUsize::new(MAX_THREADS + 1).unwrap()).err().unwrap();
    assert_eq!(e.to_string(), "1025 threads: a pool has at most 1024");
}

#[test]
fn a_small_model_gets_one_thread_and_a_large_one_all() {
    assert_eq!(threads_for(&shapes::STORIES_260K, 1).get(), 1);
    let large = threads_for(&shapes::TINYLLAMA_1B, 1);
    assert_eq!((large, threads_for(&shapes::STORIES_260K, 10_000)), (default_threads(), default_threads()));
}

fn model() -> (File, Config) {
    let config = config(48, 32, 2, 6, 2);
    (RandomModel::new(config, 3).to_file(Version::V0), config)
}

/// A tokenizer.bin whose entries are single characters.
fn vocabulary() -> Vec<u8> {
    let control = ["<unk>", "\n<s>\n", "\n</s>\n"].map(String::from);
    let characters = (0x20..).map(|c| char::from_u32(c).unwrap().to_string());
    tests::tokenizer::file(0, control.into_iter().chain(characters).take(300))
}

/// The tokens that a session picks behind a prompt, its batches and pool as given.
fn session(kv: KvType, batch: usize, runner: &Pool, penalty: f32) -> Vec<u32> {
    let (file, config) = model();
    let limits = Limits::new(config.seq_len).with_batch(batch).with_threads(2).with_kv(kv);
    let mut buffers = Buffers::new(&config, limits).unwrap();
    let model = ModelBytes::copy(file.bytes()).unwrap();
    let sampler = Sampler::new(1.0, 0.9, 7).unwrap();
    let mut session = Session::new(model.model().unwrap(), &mut buffers, runner, sampler).unwrap();
    session.penalize_repeats(penalty, 5);
    session.read(&[BOS, 40, 41, 42, 43, 44, 45]).unwrap();
    (0..20)
        .map(|_| {
            let next = session.next_token().unwrap();
            session.read(&[next]).unwrap();
            assert_eq!(session.last_token(), next);
            next
        })
        .collect()
}

/// The same with the core alone.
fn by_hand(kv: KvType, penalty: f32) -> Vec<u32> {
    let (file, config) = model();
    let mut run = Run::with_limits(file.bytes(), Limits::new(config.seq_len).with_kv(kv), Engine::scalar());
    let mut sampler = Sampler::new(1.0, 0.9, 7).unwrap();
    let mut scratch = vec![Default::default(); config.vocab_size];
    let mut tokens = vec![BOS, 40, 41, 42, 43, 44, 45];
    for _ in 0..20 {
        let mut logits = run.logits(&tokens).unwrap().pop().unwrap();
        penalize(&mut logits, &tokens[tokens.len() - 5..], penalty).unwrap();
        tokens.push(sampler.sample(&mut logits, &mut scratch).unwrap());
    }
    tokens.split_off(7)
}

#[test]
fn a_session_tells_what_the_core_tells() {
    let pool = pool(2);
    for (kv, penalty) in [(KvType::F32, 1.0), (KvType::F32, 100.0), (KvType::Q8, 1.0)] {
        for batch in [1, 3, 32] {
            assert_eq!(session(kv, batch, &pool, penalty), by_hand(kv, penalty), "batch {batch}, penalty {penalty}");
        }
    }
    assert_ne!(by_hand(KvType::F32, 1.0), by_hand(KvType::F32, 100.0), "the penalty does nothing here");
}

#[test]
fn a_session_reads_again_from_any_position_and_stops_between_layers() {
    let (file, config) = model();
    let model = ModelBytes::copy(file.bytes()).unwrap();
    let mut buffers = Buffers::new(&config, Limits::new(20).with_batch(4)).unwrap();
    let greedy = || Sampler::new(0.0, 0.0, 1).unwrap();
    let mut session = Session::new(model.model().unwrap(), &mut buffers, &Serial, greedy()).unwrap();
    assert_eq!(session.next_token(), Err(Error::NotReady));
    assert_eq!((session.pos(), session.last_token()), (0, BOS));
    session.penalize_repeats(100.0, 50);
    session.read(&[1, 50, 51, 52, 53]).unwrap();
    let want = session.next_token().unwrap();

    session.read(&[want, 61, 62, 63, 64, 65]).unwrap(); // forgotten below, so that no penalty remains
    session.read_from(3, &[52, 53], || false).unwrap();
    assert_eq!((session.pos(), session.last_token(), session.next_token()), (5, 53, Ok(want)));

    session.read_from(5, &[60, 61], || true).unwrap();
    assert_eq!((session.pos(), session.last_token()), (5, 53), "two layers, and only the first was computed");
    assert_eq!(session.next_token(), Err(Error::NotReady));
    let full = Error::Position { pos: 5, n_tokens: 4, filled: 5, max_seq: 7 };
    let mut buffers = Buffers::new(&config, Limits::new(7).with_batch(4)).unwrap();
    let mut session = Session::new(model.model().unwrap(), &mut buffers, &Serial, greedy()).unwrap();
    session.read(&[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(session.read(&[6, 7, 8, 9]), Err(full));
}

#[test]
fn a_session_keeps_tokens_and_positions_together() {
    let (file, config) = model();
    let model = ModelBytes::copy(file.bytes()).unwrap();
    let mut buffers = Buffers::new(&config, Limits::new(20).with_batch(4)).unwrap();
    let greedy = Sampler::new(0.0, 0.0, 1).unwrap();
    let mut session = Session::new(model.model().unwrap(), &mut buffers, &Serial, greedy).unwrap();
    session.read(&[1, 50, 51, 52, 53]).unwrap();
    let want = session.next_token();
    session.read(&[]).unwrap();
    assert_eq!(session.next_token(), want);

    let outside = Error::Token { token: 300, vocab_size: 300 };
    assert_eq!(session.read_from(2, &[300], || false), Err(outside));
    let e = session.read_from(6, &[], || false);
    assert!(matches!(e, Err(Error::Position { pos: 6, .. })), "{e:?}");
    assert_eq!((session.pos(), session.last_token(), session.next_token()), (5, 53, want));

    assert_eq!(session.read_from(2, &[51, 52, 53, 54, 300], || false), Err(outside));
    assert_eq!((session.pos(), session.last_token()), (6, 54), "the first of two batches was read");
    session.read_from(3, &[], || false).unwrap();
    assert_eq!((session.pos(), session.last_token(), session.next_token()), (3, 51, Err(Error::NotReady)));
    session.read(&[52, 53]).unwrap();
    assert_eq!((session.pos(), session.last_token(), session.next_token()), (5, 53, want));
}

#[test]
fn sizes_beyond_the_memory_are_errors() {
    let config = Config::new(64, 64, 1 << 30, 1, 300, 1 << 20); // 2^59 bytes of KV cache
    for (kv, bytes) in [(KvType::F32, 1 << 59), (KvType::Q8, 1 << 57)] {
        let e = Buffers::new(&config, Limits::new(1 << 20).with_kv(kv)).err().unwrap();
        assert_eq!(e, Error::OutOfMemory { buffer: "kv.values", bytes });
    }
    assert_eq!(ModelBytes::zeros(1 << 60).err(), Some(Error::OutOfMemory { buffer: "model", bytes: 1 << 60 }));
    let e = OwnedTokenizer::new(vocabulary(), usize::MAX).err().unwrap();
    assert_eq!(e, Error::TokenizerTruncated { token: 300, vocab_size: usize::MAX, have: vocabulary().len() });
}

#[test]
fn model_bytes_are_those_of_the_file() {
    let (file, config) = model();
    for shift in 0..4 {
        let mut bytes = vec![0; shift];
        bytes.extend(file.bytes());
        let copy = ModelBytes::copy(&bytes[shift..]).unwrap();
        assert_eq!(copy.bytes(), file.bytes());
        assert_eq!(*copy.model().unwrap().config(), config);
    }
    for len in 0..9 {
        let mut copy = ModelBytes::zeros(len).unwrap();
        copy.bytes_mut().fill(7);
        assert_eq!(copy.bytes(), vec![7; len]);
    }
    assert!(ModelBytes::read("no such file").is_err());
}

#[test]
fn an_owned_tokenizer_is_the_tokenizer() {
    let bytes = vocabulary();
    let mut index = vec![IndexEntry::EMPTY; 300];
    let tokenizer = Tokenizer::new(&bytes, 300, &mut index).unwrap();
    let (owned, borrowed) =
        (OwnedTokenizer::whole(bytes.clone()).unwrap(), OwnedTokenizer::new(&bytes[..], 300).unwrap());
    assert_eq!((owned.bytes(), owned.get().file_bytes()), (&bytes[..], tokenizer.file_bytes()));
    for text in ["", "One day", &"a long text ".repeat(2000), "é\u{1f600}"] {
        let most = Tokenizer::max_tokens(text.len());
        let mut want = vec![0; most];
        let n = tokenizer.encode(text, true, &mut vec![MergeSlot::EMPTY; most], &mut want).unwrap();
        want.truncate(n);
        assert_eq!(owned.encode(text).unwrap(), want);
        assert_eq!(borrowed.encode(text).unwrap(), want);
    }
    for (prev, token) in [(0, 3), (BOS, 3), (0, 65)] {
        assert_eq!(owned.decode(prev, token), tokenizer.decode(prev, token));
    }
    assert_eq!(owned.decode(0, 300), Err(Error::Token { token: 300, vocab_size: 300 }));
    for (token, bytes) in [(BOS, 0), (3, 1), (300, 0), (65, 1)] {
        assert_eq!(owned.text_bytes(token), bytes, "{token}");
    }
}

#[test]
fn perplexity_adds_up_the_nats_of_all_targets() {
    let (file, config) = model();
    let tokenizer = OwnedTokenizer::whole(vocabulary()).unwrap();
    let tokens = tokenizer.encode("a text that is read in two windows").unwrap();
    let (tokens, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let mut run = Run::new(file.bytes(), 1);
    let model = ModelBytes::copy(file.bytes()).unwrap();
    let mut buffers = Buffers::new(&config, Limits::new(20).with_batch(7)).unwrap();
    let mut state = buffers.state().unwrap();
    let (mut got, mut want) = (Perplexity::default(), Perplexity::default());
    for (tokens, targets) in tokens.chunks(20).zip(targets.chunks(20)) {
        let model = model.model().unwrap();
        let bytes_of = |token| tokenizer.text_bytes(token);
        got.add_window(&model, &mut state, &Engine::scalar(), tokens, targets, bytes_of).unwrap();
        for (logits, &target) in run.logits(tokens).unwrap().iter().zip(targets) {
            let bytes = tokenizer.decode(0, target).unwrap().len();
            want += Perplexity { nats: nats(logits, target), tokens: 1, bytes };
        }
    }
    assert_eq!(got, want);
    assert_eq!(want.perplexity(), (want.nats / targets.len() as f64).exp());
    assert!((want.per_byte() * want.bytes as f64 - want.nats).abs() < 1e-9);
}

#[test]
fn nats_are_those_of_softmax() {
    assert_eq!(nats(&[0.0; 4], 2), 4f64.ln());
    assert_eq!(nats(&[1000.0, f32::NEG_INFINITY], 0), 0.0);
    assert_eq!(nats(&[1000.0, f32::NEG_INFINITY], 1), f64::INFINITY);
    assert_eq!(nats(&[0.0], 1), f64::INFINITY, "no such token");
}

#[test]
fn readmes_show_the_example_that_ci_runs() {
    let example = include_str!("../../infer-core/examples/story.rs");
    let code = &example[example.find("use ").unwrap()..];
    assert!(code.lines().count() <= 20);
    for readme in [include_str!("../../README.md"), include_str!("../../infer-core/README.md")] {
        assert!(readme.contains(code));
    }
}
