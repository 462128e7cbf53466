//! Compares the tokenizer with SentencePiece's ids and with the obvious quadratic algorithm.

use infer_core::{BOS, Error, IndexEntry, MergeSlot, OwnedTokenizer, Tokenizer, build_index, tokenizer};
use serde::Deserialize;
use tests::shared;

const LLAMA2: &str = "data/tokenizers/llama2/tokenizer.bin";
const TOK512: &str = "data/models/stories260K/tok512.bin";
const TOK105: &str = "data/models/tok105/tok105.bin";

/// The raw bytes of the text that tokens give after BOS.
fn decode(tokenizer: &Tokenizer<'_>, tokens: &[u32]) -> Vec<u8> {
    let mut prev = BOS;
    let mut text = Vec::new();
    for &token in tokens {
        text.extend(tokenizer.decode(prev, token).unwrap());
        prev = token;
    }
    text
}

#[derive(Deserialize)]
struct WithBos {
    text: String,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn llama2_ids_agree_with_sentencepiece() {
    let Some(bytes) = shared::bytes(LLAMA2) else { return };
    let tokenizer = OwnedTokenizer::whole(&bytes).unwrap();
    let with_bos: Vec<WithBos> = shared::json("golden/tokenizer_llama2.json").unwrap();
    assert!(!with_bos.is_empty());
    for WithBos { text, tokens } in with_bos {
        assert_eq!(tokenizer.encode(&text).unwrap(), tokens, "{text:?}");
    }
    let without: Vec<Encoding> = shared::json_lines("golden/encodings/llama2.jsonl").unwrap();
    assert!(!without.is_empty());
    for Encoding { text, ids } in without {
        let tokens = &tokenizer.encode(&text).unwrap()[1..];
        assert_eq!(tokens, ids, "{text:?}");
        let most = Tokenizer::max_tokens(text.len());
        let (mut scratch, mut without_bos) = (vec![MergeSlot::EMPTY; most], vec![0; most]);
        let n = tokenizer.get().encode(&text, false, &mut scratch, &mut without_bos).unwrap();
        assert_eq!(without_bos[..n], ids, "{text:?}");
        // U+2581 comes back as the space that it stands for.
        assert_eq!(decode(&tokenizer.get(), tokens), text.replace('\u{2581}', " ").as_bytes(), "{text:?}");
    }
}

/// These vocabularies were made with a normaliser that collapses and trims spaces, which
/// tokenizer.bin does not record.
fn is_normal(text: &str) -> bool {
    !text.starts_with(' ') && !text.ends_with(' ') && !text.contains("  ") && !text.contains('\u{2581}')
}

#[test]
fn other_vocabularies_agree_with_sentencepiece() {
    for (file, golden) in [(TOK512, "tok512"), (TOK105, "tok105")] {
        let Some(bytes) = shared::bytes(file) else { return };
        let tokenizer = OwnedTokenizer::whole(&bytes).unwrap();
        let encodings: Vec<Encoding> = shared::json_lines(&format!("golden/encodings/{golden}.jsonl")).unwrap();
        // For these vocabularies SentencePiece also normalises compatibility characters, so the
        // test keeps to characters that it leaves alone.
        let plain =
            |text: &str| is_normal(text) && text.chars().all(|c| c.is_ascii() && (c == '\n' || !c.is_control()));
        let compared: Vec<_> = encodings.iter().filter(|e| plain(&e.text)).collect();
        assert!(compared.len() > 10, "{golden}: only {} texts compared", compared.len());
        for Encoding { text, ids } in compared {
            assert_eq!(tokenizer.encode(text).unwrap()[1..], ids[..], "{golden}: {text:?}");
        }
    }
}

#[derive(Deserialize)]
struct Stream {
    first_ids: Vec<u32>,
}

#[test]
fn stories_agree_with_sentencepiece() {
    let Some(bytes) = shared::bytes(TOK512) else { return };
    let tokenizer = OwnedTokenizer::whole(&bytes).unwrap();
    let golden: Stream = shared::json("golden/nll_f64.json").unwrap();
    let text = String::from_utf8(shared::bytes("data/text/tinystories_valid.txt").unwrap()).unwrap();
    let mut ids = Vec::new();
    for story in text.split("<|endoftext|>") {
        ids.extend(tokenizer.encode(story.trim()).unwrap());
        if ids.len() >= golden.first_ids.len() {
            break;
        }
    }
    assert_eq!(ids[..golden.first_ids.len()], golden.first_ids);
}

/// A vocabulary as a list, and the algorithm of llama2.c: merge the best pair of all, again and
/// again.
struct Naive {
    pieces: Vec<(f32, String)>,
    byte_tokens: bool,
}

impl Naive {
    fn id(&self, text: &str) -> Option<u32> {
        let first = if self.byte_tokens { 259 } else { 3 };
        (first..self.pieces.len()).find(|&id| self.pieces[id].1 == text).map(|id| id as u32)
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut unknown = false;
        let prefix = if text.is_empty() { "" } else { " " };
        for c in format!("{prefix}{text}").replace('\u{2581}', " ").chars() {
            let id = self.id(&c.to_string());
            match id {
                Some(id) => tokens.push(id),
                None if self.byte_tokens => tokens.extend(c.to_string().bytes().map(|b| u32::from(b) + 3)),
                None if !unknown => tokens.push(0),
                None => {}
            }
            unknown = id.is_none();
        }
        let first = if self.byte_tokens { 259 } else { 3 };
        loop {
            let mut best: Option<(f32, usize, u32)> = None;
            for (i, pair) in tokens.windows(2).enumerate() {
                if pair.iter().any(|&token| token < first) {
                    continue;
                }
                let text = format!("{}{}", self.pieces[pair[0] as usize].1, self.pieces[pair[1] as usize].1);
                if let Some(id) = self.id(&text) {
                    let score = self.pieces[id as usize].0;
                    if score > -1e10 && best.is_none_or(|(best, _, _)| score > best) {
                        best = Some((score, i, id));
                    }
                }
            }
            let Some((_, i, id)) = best else { return tokens };
            tokens[i] = id;
            tokens.remove(i + 1);
        }
    }

    fn to_file(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        tokenizer::write(&mut bytes, 0, self.pieces.iter().map(|(score, piece)| (*score, piece))).unwrap();
        bytes
    }
}

fn random_text(rng: &mut fastrand::Rng, letters: &[char], most: usize) -> String {
    (0..rng.usize(..=most)).map(|_| *rng.choice(letters).unwrap()).collect()
}

#[test]
fn random_vocabularies_agree_with_the_quadratic_algorithm() {
    let mut rng = fastrand::Rng::with_seed(5);
    for round in 0..400 {
        // There are rounds with and without byte tokens, and with and without pieces that forbid
        // splitting at spaces.
        let (byte_tokens, spaces_inside) = (round % 2 == 0, round % 4 < 2);
        let mut pieces: Vec<(f32, String)> =
            ["<unk>", "\n<s>\n", "\n</s>\n"].iter().map(|piece| (0.0, piece.to_string())).collect();
        if byte_tokens {
            pieces.extend((0..256).map(|byte| (0.0, format!("<0x{byte:02X}>"))));
        }
        let letters = if spaces_inside { &['a', 'b', 'é', ' '][..] } else { &['a', 'b', 'é'][..] };
        for _ in 0..rng.usize(1..40) {
            let space = if rng.bool() { " " } else { "" };
            let piece = format!("{space}{}", random_text(&mut rng, letters, 4));
            // Few different scores, so that ties are common; duplicates and empty pieces happen.
            let score = if rng.u8(..20) == 0 { -1e10 } else { -f32::from(rng.u8(..6)) };
            pieces.push((score, piece));
        }
        let naive = Naive { pieces, byte_tokens };
        let bytes = naive.to_file();
        let tokenizer = OwnedTokenizer::whole(&bytes).unwrap();
        for _ in 0..20 {
            let text = random_text(&mut rng, &['a', 'b', 'é', ' ', ' ', 'x', '\u{2581}'], 24);
            assert_eq!(tokenizer.encode(&text).unwrap()[1..], naive.encode(&text), "round {round}: {text:?}");
        }
    }
}

#[test]
fn scratch_for_the_longest_word_is_enough() {
    let Some(bytes) = shared::bytes(TOK512) else { return };
    let tokenizer = OwnedTokenizer::whole(&bytes).unwrap();
    let text = "Once upon a time, there was an unbelievably long word.";
    let want = tokenizer.encode(text).unwrap();
    let tokenizer = tokenizer.get();
    let longest = " unbelievably".len();
    let mut tokens = vec![0; want.len()];
    let n = tokenizer.encode(text, true, &mut vec![MergeSlot::EMPTY; longest], &mut tokens).unwrap();
    assert_eq!(tokens[..n], want);
    let e = tokenizer.encode(text, true, &mut vec![MergeSlot::EMPTY; longest - 1], &mut tokens);
    assert!(matches!(e, Err(Error::BufferTooSmall { buffer: "merge scratch", have: 12, .. })), "{e:?}");
    let e = tokenizer.encode(text, true, &mut [MergeSlot::EMPTY; 99], &mut tokens[1..]);
    assert!(matches!(e, Err(Error::BufferTooSmall { buffer: "tokens", .. })), "{e:?}");
}

#[test]
fn index_is_built_at_compile_time() {
    const FILE: &[u8] = b"\x04\0\0\0\0\0\0\0\x01\0\0\0u\0\0\0\0\x01\0\0\0s\0\0\0\0\x01\0\0\0e\0\0\0\0\x01\0\0\0 \
        \0\0\0\0\x01\0\0\0a\0\0\0\0\x02\0\0\0 a";
    const INDEX: [IndexEntry; 6] = {
        let mut index = [IndexEntry::EMPTY; 6];
        assert!(build_index(FILE, 6, &mut index).is_ok());
        index
    };
    let mut tokens = [0; 8];
    let n = Tokenizer::with_index(FILE, &INDEX).encode("aa a", true, &mut [MergeSlot::EMPTY; 8], &mut tokens).unwrap();
    assert_eq!(tokens[..n], [BOS, 5, 4, 5]);
}

#[test]
fn index_of_another_file_does_no_harm() {
    let Some(bytes) = shared::bytes(TOK512) else { return };
    let mut foreign = [IndexEntry::EMPTY; 512];
    build_index(&bytes, 512, &mut foreign).unwrap();
    let naive = Naive { pieces: vec![(0.0, "a".into()); 9], byte_tokens: false };
    let other = naive.to_file();
    let tokenizer = Tokenizer::with_index(&other, &foreign);
    for token in 0..600 {
        let _ = tokenizer.decode(0, token);
    }
    let mut tokens = [0; 99];
    let _ = tokenizer.encode("a aa aaa Once upon a time", true, &mut [MergeSlot::EMPTY; 99], &mut tokens);
}
