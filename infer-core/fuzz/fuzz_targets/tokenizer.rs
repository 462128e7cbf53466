//! Any bytes as a tokenizer, any text: an error, or the tokens that merging pair by pair gives.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use infer_core::tokenizer::write;
use infer_core::{BOS, Error, IndexEntry, MergeSlot, Tokenizer, build_index, count_entries};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    vocabulary: Vocabulary,
    /// Whose index the first one is then used with.
    foreign: Vocabulary,
    /// Entries more or fewer than the file has.
    excess: Option<i8>,
    text: Vec<Text>,
    bos: bool,
    scratch: u8,
    tokens: u8,
}

#[derive(Arbitrary, Debug)]
enum Vocabulary {
    Bytes(Vec<u8>),
    Pieces { byte_tokens: bool, pieces: Vec<(Score, Vec<Letter>)>, damage: Option<(u16, u8)>, cut: Option<u8> },
}

#[derive(Arbitrary, Debug)]
enum Score {
    Small(i8),
    Any(f32),
}

/// A small alphabet, so that pieces and texts meet.
#[derive(Arbitrary, Debug)]
enum Letter {
    A,
    B,
    C,
    Space,
    Two,
    Four,
    Any(u8),
}

#[derive(Arbitrary, Debug)]
enum Text {
    Letter(Letter),
    LowerOneEighthBlock,
    Any(char),
}

impl Letter {
    fn bytes(&self) -> &[u8] {
        match self {
            Letter::A => b"a",
            Letter::B => b"b",
            Letter::C => b"c",
            Letter::Space => b" ",
            Letter::Two => "é".as_bytes(),
            Letter::Four => "🦙".as_bytes(),
            Letter::Any(byte) => core::slice::from_ref(byte),
        }
    }
}

impl Vocabulary {
    fn file(&self) -> Vec<u8> {
        let (byte_tokens, pieces, damage, cut) = match self {
            Vocabulary::Bytes(bytes) => return bytes.clone(),
            Vocabulary::Pieces { byte_tokens, pieces, damage, cut } => (byte_tokens, pieces, damage, cut),
        };
        let control = ["<unk>", "\n<s>\n", "\n</s>\n"].map(String::from).into_iter();
        let bytes = (0..if *byte_tokens { 256 } else { 0 }).map(|byte| format!("<0x{byte:02X}>"));
        let text = pieces.iter().map(|(score, letters)| {
            let score = match score {
                Score::Small(score) => f32::from(*score),
                Score::Any(score) => *score,
            };
            (score, letters.iter().take(8).flat_map(Letter::bytes).copied().collect::<Vec<u8>>())
        });
        let entries = control.chain(bytes).map(|piece| (0.0, piece.into_bytes())).chain(text);
        let mut file = Vec::new();
        write(&mut file, 0, entries).unwrap();
        let len = file.len();
        if let Some((at, value)) = damage {
            file[usize::from(*at) % len] = *value;
        }
        file.truncate(len - usize::from(cut.unwrap_or(0)).min(len));
        file
    }
}

fuzz_target!(|input: Input| {
    let file = input.vocabulary.file();
    let text: String = input
        .text
        .iter()
        .take(64)
        .map(|text| match text {
            Text::Letter(letter) => String::from_utf8_lossy(letter.bytes()).into_owned(),
            Text::LowerOneEighthBlock => "\u{2581}".into(),
            Text::Any(c) => c.to_string(),
        })
        .collect();

    let entries = count_entries(&file);
    let vocab_size = entries.unwrap_or(8).saturating_add_signed(input.excess.unwrap_or(0).into()).max(1); // as in models
    let mut index = vec![IndexEntry::EMPTY; vocab_size];
    let built = build_index(&file, vocab_size, &mut index);
    if let Ok(entries) = entries {
        assert_eq!(built.is_ok(), vocab_size <= entries, "{built:?}");
    }
    let need = Error::BufferTooSmall { buffer: "tokenizer index", need: vocab_size, have: vocab_size - 1 };
    assert_eq!(build_index(&file, vocab_size, &mut index.clone()[1..]), Err(need));
    if built.is_ok() {
        let tokenizer = Tokenizer::with_index(&file, &index);
        assert_eq!(tokenizer.vocab_size(), vocab_size);
        assert_eq!(count_entries(&file[..tokenizer.file_bytes()]), Ok(vocab_size));
        let (scratch, tokens) = (input.scratch.into(), input.tokens.into());
        let encoded = check(&tokenizer, &text, input.bos, scratch, tokens);
        assert_eq!(encoded, merge_one_by_one(&file, vocab_size, &text, input.bos));
    }

    // An index of another file must not lead to a panic or an endless loop.
    let foreign = input.foreign.file();
    let mut index = vec![IndexEntry::EMPTY; count_entries(&foreign).unwrap_or(3)];
    let n = index.len();
    let _ = build_index(&foreign, n, &mut index);
    check(&Tokenizer::with_index(&file, &index), &text, input.bos, input.scratch.into(), input.tokens.into());
});

/// Encodes and decodes. With small buffers, the result is the same or an error.
fn check(tokenizer: &Tokenizer<'_>, text: &str, bos: bool, scratch: usize, tokens: usize) -> Vec<u32> {
    let most = Tokenizer::max_tokens(text.len());
    let mut encoded = vec![u32::MAX; most];
    let n = tokenizer.encode(text, bos, &mut vec![MergeSlot::EMPTY; most], &mut encoded).unwrap();
    encoded.truncate(n);

    let mut small = vec![u32::MAX; tokens];
    match tokenizer.encode(text, bos, &mut vec![MergeSlot::EMPTY; scratch], &mut small) {
        Ok(n) => assert_eq!(small[..n], encoded),
        Err(error) => {
            assert!(scratch < most || tokens < encoded.len(), "{error}");
            assert!(matches!(error, Error::BufferTooSmall { need, .. } if need == most));
        }
    }

    let mut prev = BOS;
    for &token in &encoded {
        // Vocabularies without control tokens may lack even the two that encoding gives.
        assert!((token as usize) < tokenizer.vocab_size() || token <= BOS);
        let _ = tokenizer.decode(prev, token);
        prev = token;
    }
    for token in (0..tokenizer.vocab_size() as u32).chain([u32::MAX]) {
        let (piece, decoded) = (tokenizer.piece(token), tokenizer.decode(BOS, token));
        assert_eq!(piece.is_some(), decoded.is_ok());
        assert_eq!(piece.is_some(), (token as usize) < tokenizer.vocab_size());
    }
    encoded
}

/// The definition of encoding, without index, words or queue.
fn merge_one_by_one(file: &[u8], vocab_size: usize, text: &str, bos: bool) -> Vec<u32> {
    let mut entries = Vec::new();
    let mut rest = &file[4..];
    while entries.len() < vocab_size {
        let (header, tail) = rest.split_first_chunk::<8>().unwrap();
        let [score, len] = [&header[..4], &header[4..]].map(|field| u32::from_le_bytes(field.try_into().unwrap()));
        let (piece, tail) = tail.split_at(len as usize);
        entries.push((f32::from_bits(score), piece));
        rest = tail;
    }
    let is_byte =
        |byte: usize| entries.get(byte + 3).is_some_and(|(_, piece)| *piece == format!("<0x{byte:02X}>").as_bytes());
    let byte_tokens = (0..256).all(is_byte);
    let first = if byte_tokens { 259 } else { 3 };
    let mut tokens_by_piece = HashMap::new();
    for (token, (score, piece)) in entries.iter().enumerate().skip(first) {
        tokens_by_piece.entry(*piece).or_insert((token as u32, *score));
    }

    let mut tokens = Vec::new();
    let mut unknown = false;
    let prefix = if text.is_empty() { "" } else { " " };
    for c in prefix.chars().chain(text.chars()) {
        let c = if c == '\u{2581}' { ' ' } else { c };
        let mut utf8 = [0; 4];
        let utf8: &[u8] = c.encode_utf8(&mut utf8).as_bytes();
        let known = tokens_by_piece.get(utf8);
        match known {
            Some((token, _)) => tokens.push(*token),
            None if byte_tokens => tokens.extend(utf8.iter().map(|byte| u32::from(*byte) + 3)),
            None if !unknown => tokens.push(0),
            None => {}
        }
        unknown = known.is_none();
    }
    loop {
        let mut best = (-1e10, None);
        for (i, pair) in tokens.windows(2).enumerate() {
            if pair.iter().all(|&token| token as usize >= first)
                && let [left, right] = [pair[0], pair[1]].map(|token| entries[token as usize].1)
                && let Some(&(token, score)) = tokens_by_piece.get(&*[left, right].concat())
                && score > best.0
            {
                best = (score, Some((i, token)));
            }
        }
        let (_, Some((i, token))) = best else { break };
        tokens.splice(i..i + 2, [token]);
    }
    if bos {
        tokens.insert(0, BOS);
    }
    tokens
}
