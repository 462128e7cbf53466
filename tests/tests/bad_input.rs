//! Damaged files and wrong arguments give a clear error, never a panic and never a silent result.

use infer_core::format::{HEADER_V1, Header, TensorName, Version};
use infer_core::{
    Config, Engine, Error, HotBuffers, IndexEntry, Kernels, KvBuffers, KvType, Limits, Model, Sampler, Serial, State,
    Tokenizer, WeightType, begin, classify, count_entries, forward, step, tokenizer,
};
use tests::Run;
use tests::random::{File, RandomModel, config};

fn tiny() -> RandomModel {
    RandomModel::new(config(8, 5, 2, 4, 2), 3)
}

fn error(bytes: &[u8]) -> Error {
    Model::from_bytes(File::new(bytes).bytes()).expect_err("this is no model")
}

#[test]
fn files_cut_at_every_length() {
    for version in [Version::V0, Version::V1] {
        let file = tiny().to_file(version);
        let whole = file.bytes();
        for len in (0..whole.len()).filter(|len| version != Version::V0 || *len != without_tables(whole).len()) {
            match error(&whole[..len]) {
                Error::Truncated { need, have } => {
                    assert_eq!(have, len as u64);
                    assert!(need > have && need <= whole.len() as u64);
                }
                e => panic!("{len} bytes: {e}"),
            }
        }
        let mut padded = whole.to_vec();
        padded.extend([0xff; 100]); // erased flash behind the model
        assert!(Model::from_bytes(File::new(&padded).bytes()).is_ok());
    }
}

/// Drops the rotary tables, which no reader needs, from a file of version 0.
fn without_tables(whole: &[u8]) -> Vec<u8> {
    let layout = Header::parse(whole).unwrap().layout().unwrap();
    let [from, imag] = [TensorName::FreqCisReal, TensorName::FreqCisImag].map(|name| layout.get(name).unwrap());
    [&whole[..from.offset as usize], &whole[(imag.offset + imag.bytes()) as usize..]].concat()
}

#[test]
fn version_0_without_rotary_tables() {
    for shared_classifier in [true, false] {
        let mut shape = config(8, 5, 2, 4, 2);
        shape.shared_classifier = shared_classifier;
        let whole = RandomModel::new(shape, 3).to_file(Version::V0);
        let bare = without_tables(whole.bytes());
        let [bare, want] = [File::new(&bare), File::new(whole.bytes())];
        let tokens = [1, 5, 299, 7];
        let [got, want] = [bare, want].map(|file| Run::new(file.bytes(), 1).logits(&tokens).unwrap());
        assert_eq!(got, want, "shared classifier: {shared_classifier}");

        let bare = without_tables(whole.bytes());
        let need = whole.bytes().len() as u64;
        for len in [bare.len() - 1, bare.len() + 1, bare.len() + 4] {
            let other = [&bare[..], &[0; 4]].concat();
            assert_eq!(error(&other[..len]), Error::Truncated { need, have: len as u64 });
        }
    }
}

#[test]
fn version_2_cut_at_every_length() {
    let weights = WeightType::Q8 { group_size: 4 };
    let config = config(8, 12, 1, 2, 1).with_weights(weights);
    let header = Header::new(Version::V2, config);
    let mut bytes = header.to_bytes().unwrap().to_vec();
    bytes.resize(header.layout().unwrap().file_bytes as usize, 1);
    assert!(Model::from_bytes(File::new(&bytes).bytes()).is_ok());
    for len in 0..bytes.len() {
        assert!(matches!(error(&bytes[..len]), Error::Truncated { .. }), "{len} bytes");
    }
}

#[test]
fn every_header_field_is_checked() {
    let v0 = tiny().to_file(Version::V0);
    let v1 = tiny().to_file(Version::V1);
    for (file, start) in [(v0.bytes(), 0), (v1.bytes(), 8)] {
        for field in 0..7 {
            for value in [0, -1, i32::MIN, i32::MAX, 1 << 30, 7] {
                let mut bytes = file.to_vec();
                bytes[start + 4 * field..][..4].copy_from_slice(&value.to_le_bytes());
                let e = match Model::from_bytes(File::new(&bytes).bytes()) {
                    Err(e) => e,
                    // Smaller models, which fit into the file: 7 in a field without divisors, and
                    // in version 0 a vocabulary of -1, one token with a classifier of its own.
                    Ok(_) if value == 7 && [1, 5, 6].contains(&field) => continue,
                    Ok(_) if value == -1 && field == 5 && start == 0 => continue,
                    // Version 1 holds nothing of the size of seq_len; the plan takes care of it.
                    Ok(_) if value > 0 && field == 6 && start == 8 => continue,
                    Ok(model) => panic!("field {field} = {value} gave {:?}", model.config()),
                };
                assert!(
                    matches!(e, Error::Header { .. } | Error::Truncated { .. } | Error::TooLarge),
                    "field {field} = {value}: {e}"
                );
            }
        }
    }
}

#[test]
fn versioned_headers() {
    let v1 = tiny().to_file(Version::V1);
    let change = |at: usize, value: i32| {
        let mut bytes = v1.bytes().to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        error(&bytes)
    };
    for version in [0, 3, -1, i32::MIN] {
        assert_eq!(change(4, version), Error::UnknownVersion { version });
    }
    assert!(matches!(change(36, 2), Error::Header { field: "shared_classifier", value: 2, .. }));
    // Version 2 with impossible group sizes.
    for group_size in [i32::MIN, -64, 0, 1, 2, 3, 5, 16, 2048, i32::MAX] {
        let mut bytes = v1.bytes().to_vec();
        bytes[4..8].copy_from_slice(&2i32.to_le_bytes());
        bytes[37..41].copy_from_slice(&group_size.to_le_bytes());
        let e = error(&bytes);
        assert!(matches!(e, Error::GroupSize { .. } | Error::Header { field: "group_size", .. }), "{group_size}: {e}");
    }
}

#[test]
fn sizes_that_overflow() {
    let huge = i32::MAX as usize;
    let config = Config::new(1 << 30, huge, huge, 1 << 29, huge, huge);
    for version in [Version::V0, Version::V1] {
        let header = Header::new(version, config);
        assert_eq!(header.layout().err(), Some(Error::TooLarge));
        assert_eq!(error(&header.to_bytes().unwrap()), Error::TooLarge);
    }
    let limits = Limits::new(huge).with_batch(usize::MAX).with_threads(usize::MAX);
    assert_eq!(config.plan(limits), Err(Error::TooLarge));
    // An int8 KV cache of half the address space, and one of all of it.
    let mut small = Config::new(4, 2, 1 << 28, 1, 300, huge);
    let limits = Limits::new(1 << 30).with_kv(KvType::Q8);
    let plan = small.plan(limits).unwrap();
    assert_eq!((plan.kv_values, plan.kv_scales), (1 << 61, 1 << 59));
    assert_eq!(plan.kv_bytes(), (1 << 61) + (1 << 61));
    small.dim = 16;
    assert_eq!(small.plan(limits), Err(Error::TooLarge));
}

#[test]
fn header_survives_the_round_trip() {
    for shared_classifier in [true, false] {
        let mut f32_config = config(48, 32, 2, 6, 2);
        f32_config.shared_classifier = shared_classifier;
        let q8_config = f32_config.with_weights(WeightType::Q8 { group_size: 16 });
        for (version, config) in [(Version::V0, f32_config), (Version::V1, f32_config), (Version::V2, q8_config)] {
            let header = Header::new(version, config);
            let bytes = header.to_bytes().unwrap();
            assert_eq!(Header::parse(&bytes[..header.size()]), Ok(header));
            assert_eq!(bytes.len(), HEADER_V1);
        }
        assert!(Header::new(Version::V2, f32_config).to_bytes().is_err());
        assert!(Header::new(Version::V0, q8_config).to_bytes().is_err());
    }
}

#[test]
fn misaligned_models() {
    let file = tiny().to_file(Version::V0);
    for shift in 1..4 {
        let mut moved = vec![0; shift];
        moved.extend(file.bytes());
        let moved = File::new(&moved);
        assert_eq!(Model::from_bytes(&moved.bytes()[shift..]).err(), Some(Error::Misaligned));
    }
}

#[test]
fn damaged_weights_are_an_error_wherever_they_are() {
    use TensorName::*;
    let limits = Limits::new(40).with_batch(2);
    for name in [TokEmb, RmsAtt, Wq, Wk, Wv, Wo, RmsFfn, W1, W2, W3, RmsFinal, Wcls] {
        for damage in [f32::NAN, f32::from_bits(0xffc0_0101), f32::INFINITY, f32::NEG_INFINITY] {
            let mut model = RandomModel::new(config(16, 5, 2, 4, 2).with_own_classifier(), 3);
            let weights = model.tensor_mut(name);
            // The last weight: of the last layer, and of the last token, which is fed below.
            *weights.last_mut().unwrap() = damage;
            let file = model.to_file(Version::V0);
            for (kernels, kv) in Kernels::all().flat_map(|kernels| [(kernels, KvType::F32), (kernels, KvType::Q8)]) {
                let engine = Engine::new(kernels, &Serial);
                let result = Run::with_limits(file.bytes(), limits.with_kv(kv), engine).logits(&[299, 299, 299]);
                assert!(
                    matches!(result, Err(Error::NotFinite { .. })),
                    "{damage} in {}, {kv:?} cache, {}: {result:?}",
                    name.as_str(),
                    kernels.name
                );
            }
        }
    }
}

#[test]
fn arguments_of_a_pass() {
    let file = tiny().to_file(Version::V0);
    let engine = Engine::scalar();
    let mut run = Run::new(file.bytes(), 4);
    let (model, max_seq) = (run.model, run.plan().limits.max_seq);
    let mut state = run.state();
    let state = &mut state;

    assert_eq!(step(&model, state, &engine), Err(Error::NotReady));
    assert_eq!(classify(&model, state, &engine, 0).err(), Some(Error::NotReady));
    assert_eq!(begin(&model, state, &[]), Err(Error::Batch { n_tokens: 0, batch: 4 }));
    assert_eq!(begin(&model, state, &[1; 5]), Err(Error::Batch { n_tokens: 5, batch: 4 }));
    assert_eq!(begin(&model, state, &[1, 300]), Err(Error::Token { token: 300, vocab_size: 300 }));
    assert_eq!(begin(&model, state, &[u32::MAX]), Err(Error::Token { token: u32::MAX, vocab_size: 300 }));
    for pos in [1, max_seq, usize::MAX] {
        let e = state.rewind(pos).unwrap_err();
        assert_eq!(e, Error::Position { pos, n_tokens: 0, filled: 0, max_seq });
    }

    begin(&model, state, &[1, 2]).unwrap();
    assert_eq!(classify(&model, state, &engine, 0).err(), Some(Error::NotReady), "no layer done");
    assert_eq!(step(&model, state, &engine), Ok(true));
    assert_eq!(classify(&model, state, &engine, 0).err(), Some(Error::NotReady), "one layer of two");
    assert_eq!(step(&model, state, &engine), Ok(false));
    assert_eq!(step(&model, state, &engine), Err(Error::NotReady), "all layers done");
    assert!(classify(&model, state, &engine, 1).is_ok());
    assert_eq!(classify(&model, state, &engine, 2).err(), Some(Error::NotReady), "two rows only");
    assert_eq!(state.filled(), 2);

    for pos in 2..max_seq - 1 {
        assert_eq!(state.filled(), pos);
        forward(&model, state, &engine, &[3]).unwrap();
    }
    let e = forward(&model, state, &engine, &[3, 3]).unwrap_err();
    assert_eq!(e, Error::Position { pos: max_seq - 1, n_tokens: 2, filled: max_seq - 1, max_seq });
    forward(&model, state, &engine, &[3]).unwrap();
    let e = forward(&model, state, &engine, &[3]).unwrap_err();
    assert_eq!(e, Error::Position { pos: max_seq, n_tokens: 1, filled: max_seq, max_seq });
    let e = state.rewind(max_seq + 1).unwrap_err();
    assert_eq!(e, Error::Position { pos: max_seq + 1, n_tokens: 0, filled: max_seq, max_seq });
    assert!(classify(&model, state, &engine, 0).is_ok(), "a refused call leaves the state as it was");

    let other = RandomModel::new(config(8, 7, 2, 4, 2), 3).to_file(Version::V0);
    let other = Model::from_bytes(other.bytes()).unwrap();
    assert_eq!(forward(&other, state, &engine, &[1]), Err(Error::ModelMismatch));
    assert_eq!(classify(&other, state, &engine, 0).err(), Some(Error::ModelMismatch));

    begin(&model, state, &[1]).unwrap_err();
    state.rewind(3).unwrap();
    assert_eq!(state.filled(), 3);
    assert_eq!(classify(&model, state, &engine, 0).err(), Some(Error::NotReady), "its position is forgotten");
    begin(&model, state, &[1]).unwrap();
    assert_eq!(step(&model, state, &engine), Ok(true));
    state.rewind(3).unwrap();
    assert_eq!(step(&model, state, &engine), Err(Error::NotReady), "the pass was given up");
    assert_eq!(state.filled(), 3);
}

#[test]
fn plans_and_buffers() {
    let config = tiny().config;
    let limits = Limits::new(40).with_batch(2).with_threads(2);
    for (name, limits) in [
        ("max_seq", Limits::new(0)),
        ("max_seq", Limits::new(41)),
        ("batch", limits.with_batch(0)),
        ("threads", limits.with_threads(0)),
    ] {
        assert!(matches!(config.plan(limits), Err(Error::Setting { name: n, .. }) if n == name), "{limits:?}");
    }
    let heads = |dim, n_heads| Config::new(dim, config.hidden_dim, config.n_layers, n_heads, 300, 40);
    let odd = heads(36, 6);
    assert!(matches!(odd.plan(limits.with_kv(KvType::Q8)), Err(Error::Unsupported { .. })));
    // Scores of larger heads could overflow: head_size · 127² beyond 2³¹.
    let wide = |dim, kv| heads(dim, 1).plan(limits.with_kv(kv));
    assert!(wide(133_144, KvType::Q8).is_ok() && wide(133_148, KvType::F32).is_ok());
    assert!(matches!(wide(133_148, KvType::Q8), Err(Error::Unsupported { what }) if what.contains("above 133,144")));

    let plan = config.plan(limits).unwrap();
    let new = |hot: usize, kv: usize| {
        let (mut hot, mut kv) = (vec![0.0; hot], vec![0.0; kv]);
        let hot = HotBuffers { f32: &mut hot, i8: &mut [] };
        State::new(&plan, hot, KvBuffers::F32(&mut kv)).map(|_| ()).err()
    };
    assert_eq!(new(plan.hot_f32, plan.kv_values), None);
    let (need, have) = (plan.hot_f32, plan.hot_f32 - 1);
    assert_eq!(new(have, plan.kv_values), Some(Error::BufferTooSmall { buffer: "hot.f32", need, have }));
    let (need, have) = (plan.kv_values, plan.kv_values - 1);
    assert_eq!(new(plan.hot_f32, have), Some(Error::BufferTooSmall { buffer: "kv.values", need, have }));
}

#[test]
fn plans_and_buffers_of_an_int8_kv_cache() {
    let limits = Limits::new(37).with_batch(2).with_threads(2).with_kv(KvType::Q8);
    let plan = config(16, 5, 2, 4, 2).plan(limits).unwrap();
    // Keys and values of 2 layers, 40 positions in whole blocks and 8 dimensions; a scale for each
    // position of a layer.
    assert_eq!((plan.kv_values, plan.kv_scales), (2 * 2 * 40 * 8, 2 * 2 * 40));
    // Queries of two tokens with 2 bytes per value, and 3 bytes to align them.
    assert_eq!(plan.hot_i8, 2 * 16 * 2 + 3);
    let mut f32s = vec![0.0; plan.hot_f32 + plan.kv_values];
    let mut new = |hot_i8: usize, values: usize, scales: usize| {
        let (mut hot_i8, mut values, mut scales) = (vec![0; hot_i8], vec![0; values], vec![0.0; scales]);
        let hot = HotBuffers { f32: &mut f32s, i8: &mut hot_i8 };
        State::new(&plan, hot, KvBuffers::Q8 { values: &mut values, scales: &mut scales }).map(|_| ()).err()
    };
    let too_small = |buffer, need| Some(Error::BufferTooSmall { buffer, need, have: need - 1 });
    assert_eq!(new(plan.hot_i8, plan.kv_values, plan.kv_scales), None);
    assert_eq!(new(plan.hot_i8 - 1, plan.kv_values, plan.kv_scales), too_small("hot.i8", plan.hot_i8));
    assert_eq!(new(plan.hot_i8, plan.kv_values - 1, plan.kv_scales), too_small("kv.values", plan.kv_values));
    assert_eq!(new(plan.hot_i8, plan.kv_values, plan.kv_scales - 1), too_small("kv.scales", plan.kv_scales));

    let f32_plan = plan.config.plan(limits.with_kv(KvType::F32)).unwrap();
    let (mut values, mut scales) = (vec![0; plan.kv_values], vec![0.0; plan.kv_scales]);
    for (plan, of_another_type) in [
        (plan, KvBuffers::F32(&mut vec![0.0; plan.kv_values])),
        (f32_plan, KvBuffers::Q8 { values: &mut values, scales: &mut scales }),
    ] {
        let hot = HotBuffers { f32: &mut f32s, i8: &mut vec![0; plan.hot_i8] };
        assert!(matches!(State::new(&plan, hot, of_another_type), Err(Error::Unsupported { .. })));
    }
}

#[test]
fn sampler_settings() {
    for (t, p, seed) in
        [(-1.0, 0.9, 1), (f32::NAN, 0.9, 1), (f32::INFINITY, 0.9, 1), (1.0, 1.1, 1), (1.0, f32::NAN, 1), (1.0, 0.9, 0)]
    {
        assert!(matches!(Sampler::new(t, p, seed), Err(Error::Setting { .. })), "{t} {p} {seed}");
    }
    let mut sampler = Sampler::new(1.0, 0.9, 1).unwrap();
    let e = sampler.sample(&mut [1.0, 2.0], &mut [Default::default()]);
    assert_eq!(e, Err(Error::BufferTooSmall { buffer: "sampler scratch", need: 2, have: 1 }));
    let e = sampler.sample(&mut [1.0, f32::NAN], &mut [Default::default(); 2]);
    assert_eq!(e, Err(Error::NotFinite { token: 1 }));
}

#[test]
fn a_sequence_belongs_to_one_model() {
    let files = [3, 4].map(|seed| RandomModel::new(config(8, 5, 2, 4, 2), seed).to_file(Version::V0));
    let [a, b] = files.each_ref().map(|file| Model::from_bytes(file.bytes()).unwrap());
    let engine = Engine::scalar();
    let mut run = Run::new(files[0].bytes(), 1);
    let mut state = run.state();
    let state = &mut state;

    begin(&a, state, &[1]).unwrap();
    assert_eq!(step(&b, state, &engine), Err(Error::OtherModel));
    while step(&a, state, &engine).unwrap() {}
    assert_eq!(classify(&b, state, &engine, 0).err(), Some(Error::OtherModel));
    assert_eq!(forward(&b, state, &engine, &[2]), Err(Error::OtherModel), "keys and values of the other one");
    classify(&a, state, &engine, 0).unwrap();
    forward(&a, state, &engine, &[2]).unwrap();

    state.rewind(0).unwrap();
    forward(&b, state, &engine, &[1]).expect("a new sequence may have another model");
    assert_eq!(classify(&a, state, &engine, 0).err(), Some(Error::OtherModel));
    let again = Model::from_bytes(files[1].bytes()).unwrap();
    classify(&again, state, &engine, 0).expect("the same bytes are the same model");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_thread_that_does_not_round_to_nearest_gets_no_state() {
    use tests::mxcsr;
    let plan = tiny().config.plan(Limits::new(9)).unwrap();
    let (mut hot, mut kv) = (vec![0.0; plan.hot_f32], vec![0.0; plan.kv_values]);
    let mut error = |mxcsr| {
        mxcsr::with(mxcsr, || {
            let hot = HotBuffers { f32: &mut hot, i8: &mut [] };
            State::new(&plan, hot, KvBuffers::F32(&mut kv)).err()
        })
    };
    for mode in mxcsr::ROUND {
        assert_eq!(error(mode), Some(Error::Rounding), "mode {mode:x}");
        assert_eq!(error(mode | mxcsr::FLUSH), Some(Error::Rounding), "mode {mode:x}");
    }
    assert_eq!((error(0), error(mxcsr::FLUSH)), (None, None));
}

fn tokenizer_file(pieces: &[(f32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokenizer::write(&mut bytes, 27, pieces.iter().copied()).unwrap();
    bytes
}

#[test]
fn tokenizers_cut_at_every_length() {
    let whole = tokenizer_file(&[(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n"), (-1.0, b" "), (-2.0, b"a")]);
    let mut index = [IndexEntry::EMPTY; 5];
    for len in 0..whole.len() {
        let e = Tokenizer::new(&whole[..len], 5, &mut index).err().unwrap();
        assert!(matches!(e, Error::TokenizerTruncated { have, vocab_size: 5, .. } if have == len), "{len}: {e}");
    }
    assert!(Tokenizer::new(&whole, 5, &mut index).is_ok());
    assert_eq!(count_entries(&whole), Ok(5));
    let e = Tokenizer::new(&whole, 6, &mut [IndexEntry::EMPTY; 6]).err().unwrap();
    assert!(matches!(e, Error::TokenizerTruncated { token: 5, vocab_size: 6, .. }), "too few entries: {e}");
    let e = Tokenizer::new(&whole, 5, &mut index[..4]).err().unwrap();
    assert_eq!(e, Error::BufferTooSmall { buffer: "tokenizer index", need: 5, have: 4 });
}

#[test]
fn tokenizer_lengths_and_scores() {
    let whole = tokenizer_file(&[(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n"), (-1.0, b" ")]);
    let mut index = [IndexEntry::EMPTY; 4];
    let last = whole.len() - 5; // length field of the last entry
    for length in [-1, i32::MIN, 2, i32::MAX] {
        let mut bytes = whole.clone();
        bytes[last..last + 4].copy_from_slice(&length.to_le_bytes());
        let e = Tokenizer::new(&bytes, 4, &mut index).err().unwrap();
        assert!(
            matches!(e, Error::TokenizerEntry { token: 3, .. } | Error::TokenizerTruncated { token: 3, .. }),
            "{length}: {e}"
        );
        assert!(count_entries(&bytes).is_err());
    }
    let mut bytes = whole.clone();
    bytes[last - 4..last].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!(Tokenizer::new(&bytes, 4, &mut index), Err(Error::TokenizerEntry { token: 3, .. })));
}

#[test]
fn decode_checks_the_token() {
    let bytes = tokenizer_file(&[(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n"), (-1.0, b" ")]);
    let mut index = [IndexEntry::EMPTY; 4];
    let tokenizer = Tokenizer::new(&bytes, 4, &mut index).unwrap();
    assert_eq!(tokenizer.decode(0, 3), Ok(&b" "[..]));
    assert_eq!(tokenizer.decode(1, 3), Ok(&b""[..]), "one space is dropped after BOS");
    for token in [4, u32::MAX] {
        assert_eq!(tokenizer.decode(0, token), Err(Error::Token { token, vocab_size: 4 }));
    }
}
