//! What `format::write` refuses, and what `format` computes: scales, rounding, rotary tables.

use std::borrow::Cow;
use std::io;

use infer_core::format::{
    Header, SpecialTokens, TemplateName, Tensor, TensorName, Version, WriteError, rotary_table, write,
};
use infer_core::{Error, Rope, RopeScaling, WeightType, shapes};
use tests::random::config;

fn headers() -> [Header; 3] {
    let f32_ = config(24, 40, 2, 2, 1).with_own_classifier();
    let int8 = f32_.with_weights(WeightType::Q8 { group_size: 8 });
    [(Version::V0, f32_), (Version::V1, f32_), (Version::V2, int8)]
        .map(|(version, config)| Header::new(version, config))
}

/// Weights of the right size, all 0.5 but one.
fn weights(header: &Header, name: TensorName, one: Option<(usize, f32)>) -> io::Result<Cow<'static, [f32]>> {
    let Tensor { rows, cols, .. } = header.layout().unwrap().get(name).unwrap();
    let mut weights = vec![0.5; rows * cols];
    if let Some((index, weight)) = one {
        weights[index] = weight;
    }
    Ok(weights.into())
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    for header in headers() {
        for tensor in header.layout().unwrap().iter() {
            for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let damaged = (tensor.name, tensor.count - 1);
                let e = write(&mut io::sink(), &header, |name, layer| {
                    weights(&header, name, ((name, layer) == damaged).then_some((7, damage)))
                });
                let Err(WriteError::NotFinite { name, layer, index: 7 }) = e else { panic!("{tensor:?}: {e:?}") };
                assert_eq!((name, layer), damaged);
            }
        }
    }
}

#[test]
fn a_matrix_of_another_size_is_named() {
    for header in headers() {
        let e = write(&mut io::sink(), &header, |name, layer| {
            let weights = weights(&header, name, None)?;
            Ok(if (name, layer) == (TensorName::W2, 1) { weights[1..].to_vec().into() } else { weights })
        });
        let Err(WriteError::Size { name: TensorName::W2, layer: 1, need: 960, have: 959 }) = e else { panic!("{e:?}") };
    }
}

#[test]
fn what_the_version_cannot_hold_is_refused() {
    let [f32_, _, int8] = headers();
    for header in [Header::new(f32_.version, int8.config), Header::new(int8.version, f32_.config)] {
        let e = write(&mut io::sink(), &header, |name, _| weights(&header, name, None));
        assert!(matches!(e, Err(WriteError::Format(Error::Unsupported { .. }))), "{e:?}");
    }
}

#[test]
fn every_file_is_as_long_as_its_table_says() {
    for header in headers() {
        let mut file = Vec::new();
        let mut asked = Vec::new();
        write(&mut file, &header, |name, layer| {
            asked.push((name, layer));
            weights(&header, name, None)
        })
        .unwrap();
        let layout = header.layout().unwrap();
        assert_eq!(file.len() as u64, layout.file_bytes);
        assert_eq!(Header::parse(&file), Ok(header));
        let table: Vec<_> = layout.iter().flat_map(|t| (0..t.count).map(move |l| (t.name, l))).collect();
        assert_eq!(asked, table);

        let mut short = vec![0; file.len() - 1];
        let e = write(&mut &mut short[..], &header, |name, _| weights(&header, name, None));
        assert!(matches!(e, Err(WriteError::Io(_))), "{e:?}");
    }
}

/// The embedding has 79,200 weights, more than the writer quantises at a time, and pieces of that
/// size do not end with a group.
#[test]
fn int8_weights_are_rounded_half_to_even() {
    let config = config(264, 24, 1, 2, 1).with_weights(WeightType::Q8 { group_size: 24 });
    let header = Header::new(Version::V2, config);
    let Tensor { offset, rows, cols, .. } = header.layout().unwrap().get(TensorName::TokEmb).unwrap();
    let scales: Vec<f32> = (0..rows * cols / 24).map(|group| (1 << (group % 8)) as f32).collect();
    let group = |&s: &f32| [127.0, 0.5, 1.5, -2.5].into_iter().chain([0.0; 20]).map(move |w| w * s);
    let mut file = Vec::new();
    write(&mut file, &header, |name, _| match name {
        TensorName::TokEmb => Ok(scales.iter().flat_map(group).collect()),
        _ => weights(&header, name, None),
    })
    .unwrap();
    let (q, rest) = file[offset as usize..].split_at(rows * cols);
    let mut want = [0; 24];
    want[..4].copy_from_slice(&[127, 0, 2, -2i8 as u8]);
    assert_eq!(q, want.repeat(scales.len()));
    assert_eq!(rest[..4 * scales.len()], scales.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>());
}

#[test]
fn the_default_shape_is_that_of_the_default_model() {
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/model.bin")).unwrap();
    assert_eq!(Header::parse(&file).unwrap().config.with_weights(WeightType::F32), shapes::DEFAULT);
}

#[test]
fn rotary_tables_of_version_0() {
    let [header, ..] = headers();
    for (name, part) in [(TensorName::FreqCisReal, f64::cos as fn(f64) -> f64), (TensorName::FreqCisImag, f64::sin)] {
        let Tensor { rows, cols, .. } = header.layout().unwrap().get(name).unwrap();
        assert_eq!((rows, cols), (40, 6));
        let table = rotary_table(&header.config, name).unwrap();
        assert_eq!(table.len(), rows * cols);
        for (i, value) in table.into_iter().enumerate() {
            let (pos, pair) = (i / cols, i % cols);
            let want = part(pos as f64 * 10000f64.powf(-2.0 * pair as f64 / 12.0));
            assert!((f64::from(value) - want).abs() < 5e-6, "{} at {pos}, {pair}: {value}", name.as_str());
        }
    }
    assert_eq!(rotary_table(&header.config, TensorName::TokEmb), None);
}

/// Headers that say something that llama2.c's fields cannot.
fn extended() -> Vec<Header> {
    let [_, f32_, int8] = headers();
    let (low_freq_factor, high_freq_factor, original_seq_len) = (1.0, 4.0, 8192);
    let llama3 = RopeScaling::Llama3 { factor: 32.0, low_freq_factor, high_freq_factor, original_seq_len };
    let rope = Rope::new(500_000.0).with_scaling(llama3);
    let linear = Rope::LLAMA2.with_scaling(RopeScaling::Linear { factor: 2.5 });
    let tokens = SpecialTokens::new(&[], &[7, 0, 299]).unwrap();
    let longest = SpecialTokens::new(&[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let name = |name| TemplateName::new(name).unwrap();
    vec![
        Header::new(Version::V1, f32_.config.with_rope(rope)),
        Header::new(Version::V2, int8.config.with_rope(linear).with_norm_eps(1e-6)).with_tokens(tokens),
        f32_.with_tokens(longest).with_template(name("chatml")),
        int8.with_template(name(&"x".repeat(32))),
    ]
}

#[test]
fn the_extension_is_read_as_it_was_written() {
    const { assert!(Header::new(Version::V0, shapes::STORIES_260K).is_plain()) };
    for header in extended() {
        let bytes = header.to_bytes().unwrap();
        assert!(!header.is_plain() && bytes[48..52] == *b"llmx");
        assert_eq!(Header::parse(&bytes), Ok(header));
        let all = || (0..300).chain([u32::MAX]);
        assert!(
            all().all(|id| header.ends(id) == (header.tokens.bos().contains(&id) || header.tokens.eos().contains(&id)))
        );
        let (tokens, template) = (header.tokens, header.template);
        assert_eq!(SpecialTokens::new(tokens.bos(), tokens.eos()), Ok(tokens));
        assert_eq!(TemplateName::new(template.as_str()), Ok(template));
        // Without the magic it is a plain file of the same shape.
        let mut plain = bytes;
        plain[48] = 0;
        let plain = Header::parse(&plain).unwrap();
        assert!(plain.is_plain() && plain.config.dim == header.config.dim);
        let version_0 = Header::new(Version::V0, header.config.with_weights(WeightType::F32))
            .with_tokens(header.tokens)
            .with_template(header.template);
        assert!(matches!(version_0.to_bytes(), Err(Error::Unsupported { .. })));
    }
    for header in headers() {
        assert!(header.ends(1) && !header.ends(2));
        assert!(header.is_plain() && header.to_bytes().unwrap()[41..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn damaged_extensions_are_refused() {
    let [_, _, header, _] = &extended()[..] else { panic!() };
    let change = |at: usize, value: i32| {
        let mut bytes = header.to_bytes().unwrap();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        Header::parse(&bytes).unwrap_err()
    };
    let float = |value: f32| value.to_bits() as i32;
    assert!(matches!(change(52, 2), Error::Header { field: "version of the extension", value: 2, .. }));
    assert!(matches!(change(56, float(0.5)), Error::Setting { name: "rope_theta", .. }));
    assert!(matches!(change(56, float(f32::NAN)), Error::Setting { name: "rope_theta", .. }));
    assert!(matches!(change(60, float(-1e-5)), Error::Setting { name: "norm_eps", .. }));
    assert!(matches!(change(64, 3), Error::Header { field: "rope scaling", value: 3, .. }));
    assert!(matches!(change(64, 1), Error::Setting { name: "rope scaling factor", value: 0.0, .. }));
    assert!(matches!(change(84, 5), Error::Header { field: "number of BOS tokens", value: 5, .. }));
    assert!(matches!(change(88, -1), Error::Header { field: "number of EOS tokens", value: -1, .. }));
    assert!(matches!(change(92, 300), Error::Token { token: 300, vocab_size: 300 }));
    assert!(matches!(change(136, -1), Error::Token { token: u32::MAX, .. }));
    assert!(matches!(change(140, -1), Error::Header { field: "name of the chat template", .. }));
    assert!(matches!(change(168, 0x6d6d), Error::Header { field: "name of the chat template", .. }));
    assert!(matches!(SpecialTokens::new(&[0; 5], &[]), Err(Error::Setting { value: 5.0, .. })));
    assert!(matches!(SpecialTokens::new(&[], &[0; 9]), Err(Error::Setting { value: 9.0, .. })));
    assert!(TemplateName::new(&"x".repeat(33)).is_err() && TemplateName::new("a\0b").is_err());
}
