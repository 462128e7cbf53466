//! tokenizer.json: a vocabulary of the tokenizers library. It becomes a tokenizer.bin if both cut
//! sample texts into the same tokens, and else stays as it is.

use std::collections::HashMap;

use anyhow::{Context, anyhow, ensure};
use infer_core::OwnedTokenizer;
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::io::import::vocabulary::{Kind, NEVER, Pieces, Words, scored};
use crate::io::vocabulary::Vocabulary;

/// Longest file that is read, in bytes.
pub const MAX_JSON: u64 = 32 << 20;
/// Most values in a file. Each takes more memory than it has bytes: Llama 3's file has a million.
const MAX_VALUES: usize = 4 << 20;
/// Random texts that are compared.
const SAMPLES: usize = 4000;

/// Texts with what the rules of vocabularies differ in: spaces, digits, scripts, line ends.
const TEXTS: [&str; 8] = [
    "Once upon a time, there was a little girl named Lily. She didn't like 3 of her 1,024 toys!",
    "  two  spaces   three and\ttabs\n\n  new lines\r\n",
    "Füße, œuvre, ñandú, Ελλάδα, Москва, עברית, العربية",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "🙂👩‍👩‍👧 e\u{301} \u{2581}x \u{a0} \u{feff}",
    "fn main() { println!(\"{:?}\", [1, 2, 3]); } // https://example.com/?q=1&r=2",
    "x",
    " x ",
];

/// Reads a file. `model` has the entries of a tokenizer.model beside it, which are tried before
/// those that the file's own merges give.
///
/// # Errors
/// The file is damaged.
pub fn read(bytes: &[u8], model: Option<Words>) -> anyhow::Result<Words> {
    let separators = bytes.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count();
    ensure!(separators <= MAX_VALUES, "it has {separators} values: at most {MAX_VALUES} are read");
    let tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| anyhow!("it is no tokenizer.json: {e}"))?;
    let bos = put_in_front(&tokenizer)?;
    let candidate = match model {
        Some(Words { pieces: Pieces::Scored(entries), .. }) => Some(with_added(entries, &tokenizer)?),
        _ => serde_json::from_slice(bytes).ok().and_then(|json| entries_of(json, &tokenizer)),
    };
    let fits = |entries: &Vec<(f32, String)>| cuts_as(entries, &tokenizer);
    let pieces = match candidate.filter(fits) {
        Some(entries) => Pieces::Scored(entries),
        None => json(bytes, &tokenizer),
    };
    Ok(Words { pieces, bos, eos: Vec::new(), template: None })
}

fn json(bytes: &[u8], tokenizer: &Tokenizer) -> Pieces {
    let vocab = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |last| *last as usize + 1);
    let added = tokenizer.get_added_tokens_decoder();
    let needed = vocab.values().filter(|id| !added.contains_key(id)).max().map_or(0, |last| *last as usize + 1);
    Pieces::Json { bytes: bytes.to_vec(), size, needed }
}

/// The tokens that the file puts in front of every text.
fn put_in_front(tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let encode =
        |special| tokenizer.encode("x", special).map_err(|e| anyhow!("its rules fail for the text \"x\": {e}"));
    let (bare, whole) = (encode(false)?, encode(true)?);
    let (bare, whole) = (bare.get_ids(), whole.get_ids());
    let at = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    Ok(whole[..at].to_vec())
}

/// The parts of a file that scores are made of.
#[derive(Deserialize)]
struct Json {
    model: Bpe,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

/// The entries of a tokenizer.bin: the piece that merges first has the best score. Single
/// characters follow in the order of their ids, as in Llama 2's vocabulary.
fn entries_of(json: Json, tokenizer: &Tokenizer) -> Option<Vec<(f32, String)>> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for merge in json.model.merges {
        let piece = match merge {
            Merge::Pair(left, right) => left + &right,
            Merge::Text(text) => text.split_once(' ').map(|(left, right)| format!("{left}{right}"))?,
        };
        let next = ranks.len();
        ranks.entry(piece).or_insert(next);
    }
    let added = tokenizer.get_added_tokens_decoder();
    let mut tokens: Vec<(u32, String)> = json.model.vocab.into_iter().map(|(piece, id)| (id, piece)).collect();
    tokens.extend(added.iter().map(|(id, token)| (*id, token.content.clone())));
    tokens.sort();
    tokens.dedup_by_key(|(id, _)| *id);
    if tokens.iter().zip(0..).any(|((id, _), expected)| *id != expected) {
        return None; // ids without a token
    }
    let mut rest = ranks.len();
    let pieces = tokens.into_iter().map(|(id, piece)| {
        let is_byte = is_byte(&piece);
        if added.contains_key(&id) || (id < 3 && !is_byte) {
            return (piece, 0.0, Kind::Special);
        }
        if is_byte {
            return (piece, 0.0, Kind::Byte);
        }
        let rank = ranks.get(&piece).copied().unwrap_or_else(|| {
            rest += 1;
            rest - 1
        });
        (piece, -(rank as f32), Kind::Text)
    });
    scored(pieces).ok()
}

fn is_byte(piece: &str) -> bool {
    let hex = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c)))
}

/// The entries of a tokenizer.model with the tokens that the file has added behind them.
fn with_added(mut entries: Vec<(f32, String)>, tokenizer: &Tokenizer) -> anyhow::Result<Vec<(f32, String)>> {
    for id in entries.len()..tokenizer.get_vocab_size(true) {
        let piece = u32::try_from(id).ok().and_then(|id| tokenizer.id_to_token(id));
        entries.push((NEVER, piece.with_context(|| format!("it has no token {id}"))?));
    }
    Ok(entries)
}

/// Whether a tokenizer.bin of these entries cuts sample texts as the file does.
fn cuts_as(entries: &[(f32, String)], tokenizer: &Tokenizer) -> bool {
    let pieces = Pieces::Scored(entries.to_vec());
    let Ok(Vocabulary::Bin(bytes)) = pieces.fit(entries.len()) else { return false };
    let Ok(ours) = OwnedTokenizer::whole(bytes) else { return false };
    let added = tokenizer.get_added_tokens_decoder();
    // Special tokens in a text are a matter of their own.
    let is_plain = |text: &str| !text.is_empty() && !added.values().any(|token| text.contains(&token.content));
    let same = |text: &str| {
        let theirs = tokenizer.encode(text, false);
        !is_plain(text)
            || matches!((ours.encode(text), theirs), (Ok(ours), Ok(theirs)) if ours[1..] == *theirs.get_ids())
    };
    let mut random = fastrand::Rng::with_seed(1);
    let mut sample = || (0..6).map(|_| entries[random.usize(..entries.len())].1.as_str()).collect::<String>();
    TEXTS.iter().all(|text| same(text))
        && entries.iter().all(|(_, piece)| same(piece.trim_start()))
        && (0..SAMPLES).all(|_| same(&sample()))
}
