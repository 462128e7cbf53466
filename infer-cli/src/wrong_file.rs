//! Recognises files of other programs, and models and tokenizers in each other's place, so that the
//! error names the file that was given.

use std::path::Path;

use infer_core::format::{Header, MAGIC};
use infer_core::{Model, count_entries};

/// Describes a file that is not a model. `None` for a model, even one that is cut or damaged, and
/// for an unknown format.
pub fn not_a_model(bytes: &[u8], path: &Path) -> Option<String> {
    if bytes.starts_with(&MAGIC.to_le_bytes()) {
        return None;
    }
    let by_content = kind(bytes);
    if by_content.is_none() && Header::parse(bytes).is_ok() {
        return None;
    }
    if is_tokenizer(bytes) {
        return Some("it is a tokenizer.bin: give the model in its place, and this with -z".into());
    }
    let what = described(by_content, path)?;
    let remedy = by_content.or_else(|| kind_by_name(path))?.remedy();
    Some(format!("{what}, not a llama2.c model: {remedy}"))
}

/// Describes a tokenizer.json that cannot be read.
pub const BAD_TOKENIZER_JSON: &str = "it is a tokenizer.json of Hugging Face, not a tokenizer.bin, and cannot be read";

/// Whether the file is a tokenizer.json, perhaps a damaged one.
pub fn is_tokenizer_json(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(256)];
    is_json(head.trim_ascii_start()) && head.trim_ascii_start().starts_with(b"{") && !head.contains(&0)
}

/// Describes a file that is neither a tokenizer.bin nor a tokenizer.json.
pub fn not_a_tokenizer(bytes: &[u8], path: &Path) -> Option<String> {
    if is_tokenizer(bytes) || kind(bytes) == Some(Kind::TokenizerJson) || is_tokenizer_json(bytes) {
        return None;
    }
    if bytes.starts_with(&MAGIC.to_le_bytes()) || Model::from_bytes(bytes).is_ok() {
        return Some("it is a model: give its tokenizer.bin with -z".into());
    }
    let what = described(kind(bytes), path)?;
    Some(format!(
        "{what}, not a tokenizer.bin: give the one that belongs to the model (`trainer import tokenizer.model \
         tokenizer.bin` makes one)"
    ))
}

/// Whether the file consists of whole entries. The length of the longest one, which stands first,
/// tells it from a file of zeros.
fn is_tokenizer(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|longest| *longest != [0; 4]) && count_entries(bytes).is_ok_and(|n| n > 0)
}

/// Says "it is a GGUF file" or the like, by the content or else by the name.
fn described(by_content: Option<Kind>, path: &Path) -> Option<String> {
    match by_content {
        Some(kind) => Some(format!("it is {kind}")),
        None => Some(format!("by its name it is {}", kind_by_name(path)?)),
    }
}

/// A format of another program.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Gguf,
    Ggml,
    PyTorch,
    Safetensors,
    SentencePiece,
    TokenizerJson,
    Json,
    Zip,
    Compressed,
    LfsPointer,
    Html,
    Text,
}

impl Kind {
    fn remedy(self) -> &'static str {
        match self {
            Kind::PyTorch | Kind::Gguf => "`trainer import FILE model.bin` converts it",
            Kind::Safetensors | Kind::Json => {
                "`trainer import FOLDER model.bin` converts the folder that it is part of"
            }
            Kind::SentencePiece | Kind::TokenizerJson => "give the model.bin, and its tokenizer.bin with -z",
            Kind::Zip | Kind::Compressed => "unpack it first",
            Kind::LfsPointer => "fetch the file itself, git lfs pull",
            Kind::Html => "the download went wrong, fetch the file itself",
            Kind::Text => "-f takes a prompt from a file",
            Kind::Ggml => "convert it to GGUF with an older llama.cpp, and that with `trainer import`",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Gguf => "a GGUF file of llama.cpp",
            Kind::Ggml => "a GGML file of an older llama.cpp",
            Kind::PyTorch => "a PyTorch checkpoint",
            Kind::Safetensors => "a safetensors file",
            Kind::SentencePiece => "a tokenizer.model of SentencePiece",
            Kind::TokenizerJson => "a tokenizer.json of Hugging Face",
            Kind::Json => "a JSON file",
            Kind::Zip => "a zip archive",
            Kind::Compressed => "a compressed file or an archive",
            Kind::LfsPointer => "a pointer of Git LFS",
            Kind::Html => "a web page",
            Kind::Text => "a text",
        })
    }
}

/// Recognises the format by the file's first bytes.
fn kind(bytes: &[u8]) -> Option<Kind> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let head = &bytes[..bytes.len().min(256)];
    let contains = |word: &[u8]| head.windows(word.len()).any(|bytes| bytes == word);
    let text = head.trim_ascii_start();
    Some(match () {
        () if starts(b"GGUF") => Kind::Gguf,
        () if [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| starts(*magic)) => Kind::Ggml,
        // A zip archive whose first entry is NAME/data.pkl, or, before PyTorch 1.6, a bare pickle.
        () if starts(b"PK\x03\x04") && contains(b"/data.pkl") => Kind::PyTorch,
        () if starts(b"\x80\x02") && contains(b"l\xfc\x9cF\xf9 j\xa8P\x19.") => Kind::PyTorch,
        () if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") => Kind::Zip,
        // The header's length in 8 bytes, then the header.
        () if head.get(8..10) == Some(b"{\"") && head[4..8] == [0; 4] => Kind::Safetensors,
        // The first message of a protocol buffer is the piece <unk>.
        () if starts(b"\n") && head.get(2) == Some(&b'\n') && contains(b"<unk>") => Kind::SentencePiece,
        () if text.starts_with(b"{") && contains(b"\"added_tokens\"") => Kind::TokenizerJson,
        () if is_json(text) => Kind::Json,
        () if starts(b"version https://git-lfs") => Kind::LfsPointer,
        () if text.to_ascii_lowercase().starts_with(b"<!doctype html") || text.starts_with(b"<html") => Kind::Html,
        () if is_archive(bytes) => Kind::Compressed,
        () if is_text(head) => Kind::Text,
        () => return None,
    })
}

/// Whether an object or an array begins here.
fn is_json(text: &[u8]) -> bool {
    let next = text.get(1..).unwrap_or_default().trim_ascii_start().first();
    match text.first() {
        Some(b'{') => matches!(next, Some(b'"' | b'}')),
        Some(b'[') => matches!(next, Some(b'"' | b'{' | b'[' | b']' | b'0'..=b'9' | b'-')),
        _ => false,
    }
}

/// Whether the bytes are text. The last character may be cut.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default(),
        Err(_) => return false,
    };
    text.len() >= 16 && !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace())
}

/// gzip, xz, zstd, bzip2, 7z, or tar.
fn is_archive(bytes: &[u8]) -> bool {
    let magics: [&[u8]; 5] = [b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh", b"7z\xbc\xaf\x27\x1c"];
    magics.iter().any(|magic| bytes.starts_with(magic)) || bytes.get(257..262) == Some(b"ustar")
}

/// Recognises the format by the file's name, as the content may be damaged.
fn kind_by_name(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "gguf" => Some(Kind::Gguf),
        "ggml" => Some(Kind::Ggml),
        "pt" | "pth" | "ckpt" => Some(Kind::PyTorch),
        "safetensors" => Some(Kind::Safetensors),
        "model" => Some(Kind::SentencePiece),
        "json" => Some(Kind::Json),
        "zip" => Some(Kind::Zip),
        "gz" | "tgz" | "xz" | "zst" | "bz2" | "7z" | "tar" => Some(Kind::Compressed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        let mut tar = [0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, want) in [
            (&b"GGUF\x03\0\0\0"[..], Kind::Gguf),
            (b"tjgg\x01\0\0\0", Kind::Ggml),
            (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0d\0\0\0ckpt/data.pkl", Kind::PyTorch),
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", Kind::PyTorch),
            (b"PK\x03\x04\x14\0\0\0\0\0arr_0.npy", Kind::Zip),
            (b"\x80\x01\0\0\0\0\0\0{\"__metadata__\":{}}", Kind::Safetensors),
            (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0c\n\x03<s>", Kind::SentencePiece),
            (b"{\n  \"version\": \"1.0\",\n  \"added_tokens\": [", Kind::TokenizerJson),
            (b"\n{ \"dim\": 64 }", Kind::Json),
            (b"[{\"story\": \"a\"}]", Kind::Json),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", Kind::LfsPointer),
            (b"<!DOCTYPE html><title>404</title>", Kind::Html),
            (b"\x1f\x8b\x08\0", Kind::Compressed),
            (&tar, Kind::Compressed),
        ] {
            assert_eq!(kind(bytes), Some(want));
            for cut in 0..bytes.len() {
                kind(&bytes[..cut]); // no panic
            }
        }
        assert_eq!(kind(b"{ x"), None);
        assert_eq!(kind("Once upon a time, in a café".as_bytes()), Some(Kind::Text));
        assert_eq!(kind(b"Once upon a time, in \0"), None);
        assert_eq!(kind_by_name(Path::new("a/b.GGUF")), Some(Kind::Gguf));
        assert_eq!(kind_by_name(Path::new("gguf")), None);
    }
}
