//! Refuses the parts of a tokenizer.json that this does not read, and those that would let a short
//! text grow without bound.

use anyhow::{bail, ensure};
use serde_json::Value;

/// How many times longer all normalizers together may make a text.
const MOST_GROWTH: usize = 64;
/// Those of byte-pair encodings.
const PRE_TOKENIZERS: [&str; 8] =
    ["ByteLevel", "Split", "Metaspace", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit"];

/// What the letters of pieces stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// Each letter is a byte, as in GPT-2.
    Bytes,
    /// U+2581 is a space, and `<0x0A>` a byte.
    SentencePiece,
}

impl Alphabet {
    /// The bytes of a piece.
    pub fn bytes(self, piece: &str) -> Vec<u8> {
        match self {
            // A piece with a letter that is no byte is text, such as the name of an added token.
            Alphabet::Bytes => piece.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| piece.into()),
            Alphabet::SentencePiece => match byte_token(piece) {
                Some(byte) => vec![byte],
                None => piece.replace('\u{2581}', " ").into(),
            },
        }
    }
}

/// The byte that a letter of GPT-2's alphabet stands for: printable ones for themselves, the others
/// in their order from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    match u32::from(letter) {
        code @ 0..0x100 => Some(code as u8).filter(|byte| printable(*byte)),
        code => (0..=255).filter(|byte| !printable(*byte)).nth((code - 0x100) as usize),
    }
}

/// The byte of `<0x0A>` and the like.
fn byte_token(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| hex)
}

/// Finds out what the pieces are made of.
pub fn alphabet(decoder: &Value, pre_tokenizer: &Value) -> anyhow::Result<Alphabet> {
    let of = |part: &Value| match kind(part) {
        "ByteLevel" => Some(Alphabet::Bytes),
        "Metaspace" | "ByteFallback" => Some(Alphabet::SentencePiece),
        "Replace" if part["content"] == " " => Some(Alphabet::SentencePiece),
        _ => None,
    };
    // Some files have no decoder.
    let from = if decoder.is_null() { flat(pre_tokenizer, "pretokenizers") } else { flat(decoder, "decoders") };
    match from.into_iter().find_map(of) {
        Some(alphabet) => Ok(alphabet),
        None => bail!("its decoder is neither ByteLevel nor SentencePiece's: the bytes of its tokens are unknown"),
    }
}

/// Checks what texts go through before they are encoded.
pub fn parts(normalizer: &Value, pre_tokenizer: &Value) -> anyhow::Result<()> {
    let mut growth: usize = 1;
    for part in flat(normalizer, "normalizers") {
        growth = growth.saturating_mul(growth_of(part)?);
    }
    ensure!(growth <= MOST_GROWTH, "its normalizers make a text {growth} times longer, more than {MOST_GROWTH} times");
    for part in flat(pre_tokenizer, "pretokenizers") {
        ensure!(PRE_TOKENIZERS.contains(&kind(part)), "its pre-tokenizer {} is not supported", kind(part));
    }
    Ok(())
}

/// How many times longer a normalizer can make a text.
fn growth_of(part: &Value) -> anyhow::Result<usize> {
    Ok(match kind(part) {
        "Replace" => {
            let content = part["content"].as_str().map_or(0, str::len);
            match part["pattern"]["String"].as_str().map_or(0, str::len) {
                0 => content.saturating_add(1), // a pattern that may match nothing, everywhere
                replaced => content.div_ceil(replaced).max(1),
            }
        }
        "Prepend" => part["prepend"].as_str().map_or(1, str::len).max(2),
        "NFKC" | "NFKD" => 18, // the worst character is U+FDFA
        "NFC" | "NFD" | "Lowercase" | "ByteLevel" => 4,
        "Strip" | "StripAccents" => 1,
        other => bail!("its normalizer {other} is not supported"),
    })
}

/// The parts of a sequence, and of the sequences in it, or the one part.
fn flat<'a>(part: &'a Value, key: &str) -> Vec<&'a Value> {
    match part[key].as_array() {
        Some(parts) => parts.iter().flat_map(|part| flat(part, key)).collect(),
        None if part.is_null() => Vec::new(),
        None => vec![part],
    }
}

fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or("of no type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_gpt_2_are_bytes() {
        let bytes: Vec<u8> = Alphabet::Bytes.bytes("!~\u{a1}\u{ff}\u{100}\u{120}\u{121}\u{142}\u{143}Ġ");
        assert_eq!(bytes, b"!~\xa1\xff\x00\x20\x7f\xa0\xad\x20");
        assert_eq!(Alphabet::Bytes.bytes("a b"), b"a b", "a space is none of its letters");
        assert_eq!(Alphabet::SentencePiece.bytes("\u{2581}a\u{2581}"), b" a ");
        assert_eq!(Alphabet::SentencePiece.bytes("<0xFF>"), b"\xff");
        assert_eq!(Alphabet::SentencePiece.bytes("<0x+F>"), b"<0x+F>");
    }
}
