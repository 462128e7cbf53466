//! The tokenizer.model of Meta's Llama 3: a line per token, with its bytes in base 64 and its rank.
//! It becomes a tokenizer.json. The special tokens are not in the file but in Meta's code.

use std::collections::HashMap;

use anyhow::{Context, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, json};

use crate::io::import::byte_level::{ByteLevel, alphabet};
use crate::io::import::tokenizer_json;
use crate::io::import::vocabulary::Words;
use crate::io::pretokenizers::rules;

/// Longest file that is read, in bytes; Llama 3's has 2.2 MB.
pub const MAX_FILE: u64 = 8 << 20;
/// Bytes of the longest token; Llama 3's has 128.
const MAX_TOKEN: usize = 256;
/// Number of special tokens, which follow the ranked ones.
const SPECIAL: usize = 256;
/// The first special tokens of Llama 3.1. Those behind them are reserved.
const NAMED: [&str; 12] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
];
/// Places of the tokens that end a text: `<|end_of_text|>`, `<|eom_id|>` and `<|eot_id|>`.
const EOS: [usize; 3] = [1, 8, 9];

/// Whether a file begins as such a vocabulary.
pub fn is_tiktoken(start: &[u8]) -> bool {
    let mut lines = start.split(|byte| *byte == b'\n');
    lines.next().is_some_and(|line| entry(line).is_ok_and(|(_, rank)| rank == 0))
}

/// Reads a file.
///
/// # Errors
/// A line is damaged.
pub fn read(bytes: &[u8]) -> anyhow::Result<Words> {
    let mut ranks: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut tokens = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let n = tokens.len();
        let (token, rank) = entry(line).with_context(|| format!("line {}", n + 1))?;
        ensure!(rank == n, "line {} has the rank {rank}, and {n} is expected", n + 1);
        ensure!(ranks.insert(token.clone(), rank).is_none(), "the token of line {} is there twice", n + 1);
        tokens.push(token);
    }
    let alphabet = alphabet();
    let spell = |token: &[u8]| token.iter().map(|byte| alphabet[usize::from(*byte)]).collect::<String>();
    let mut vocab = Map::new();
    let mut merges = Vec::new();
    for (rank, token) in tokens.iter().enumerate() {
        vocab.insert(spell(token), rank.into());
        if let Some(at) = last_merge(token, rank, &ranks) {
            merges.push(json!([spell(&token[..at]), spell(&token[at..])]));
        }
    }
    let first = tokens.len();
    let name = |i: usize| {
        NAMED.get(i).map_or_else(|| format!("<|reserved_special_token_{}|>", i - 10), |name| name.to_string())
    };
    let special = (0..SPECIAL).map(|i| (first + i, name(i))).collect();
    let rules = rules("llama-bpe").context("Llama 3's words are not known")?;
    let json = ByteLevel { vocab, merges, special, rules, ignore_merges: true }.into_json()?;
    let words = tokenizer_json::read(&json, None)?;
    let id = |place: usize| (first + place) as u32;
    Ok(Words { bos: vec![id(0)], eos: EOS.map(id).to_vec(), ..words })
}

/// The bytes of a token and its rank.
fn entry(line: &[u8]) -> anyhow::Result<(Vec<u8>, usize)> {
    let line = std::str::from_utf8(line)?;
    let (token, rank) = line.split_once(' ').ok_or_else(|| anyhow!("there is no token with its rank"))?;
    ensure!(token.len() <= 2 * MAX_TOKEN, "its token has {} characters", token.len());
    let token = STANDARD.decode(token).map_err(|e| anyhow!("its token is no base 64: {e}"))?;
    ensure!((1..=MAX_TOKEN).contains(&token.len()), "its token has {} bytes: 1 to {MAX_TOKEN} are read", token.len());
    Ok((token, rank.trim_end().parse()?))
}

/// Where the last merge that makes a token joins its two parts: the merges of better rank leave
/// them. `None` for single bytes, and for tokens that no merge makes.
fn last_merge(token: &[u8], rank: usize, ranks: &HashMap<Vec<u8>, usize>) -> Option<usize> {
    let mut ends: Vec<usize> = (0..=token.len()).collect(); // part i is token[ends[i]..ends[i + 1]]
    while ends.len() > 3 {
        let rank_at = |i: usize| ranks.get(&token[ends[i]..ends[i + 2]]).copied().filter(|there| *there < rank);
        let (_, best) = (0..ends.len() - 2).filter_map(|i| Some((rank_at(i)?, i))).min()?;
        ends.remove(best + 1);
    }
    (ends.len() == 3).then(|| ends[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_found_from_ranks() {
        let tokens: [&[u8]; 7] = [b"a", b"b", b"c", b"bc", b"ab", b"abc", b"abab"];
        let lines: String =
            tokens.iter().zip(0..).map(|(token, rank)| format!("{} {rank}\n", STANDARD.encode(token))).collect();
        let ranks = tokens.iter().zip(0..).map(|(token, rank)| (token.to_vec(), rank)).collect();
        let splits = [None, None, None, Some(1), Some(1), Some(1), Some(2)];
        for ((token, rank), split) in tokens.iter().zip(0..).zip(splits) {
            assert_eq!(last_merge(token, rank, &ranks), split, "{token:?}");
        }
        assert!(is_tiktoken(lines.as_bytes()) && !is_tiktoken(b"\x0a\x0e\x0a\x05<unk>"));
        let words = read(lines.as_bytes()).unwrap();
        assert_eq!((words.bos, words.eos), (vec![7], vec![8, 15, 16]));
        assert_eq!(words.pieces.size(), 7 + 256);
        assert!(read(b"YQ== 0\nYQ== 1\n").unwrap_err().to_string().contains("twice"));
        assert!(read(b"YQ== 0\nYg== 2\n").unwrap_err().to_string().contains("rank 2"));
    }
}
