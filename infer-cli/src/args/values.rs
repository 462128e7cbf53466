//! Parsers of the values of flags, and their messages.

use std::num::NonZeroUsize;

use clap::ValueEnum;
use infer_core::MAX_THREADS;

use super::Kv;

/// The limits that `inspect` plans for.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    pub max_seq: Option<usize>,
    pub kv: Kv,
    /// Bytes of the longest prompt.
    pub prompt: u32,
}

pub fn plan(text: &str) -> Result<PlanLimits, String> {
    let mut limits = PlanLimits { max_seq: None, kv: Kv::F32, prompt: 128 }; // firmware-example's MAX_PROMPT
    for setting in text.split(',').filter(|setting| !setting.is_empty()) {
        let not_a_number = |_| format!("{setting}: give a number");
        match setting.split_once('=') {
            Some(("max_seq", n)) => limits.max_seq = Some(n.parse().map_err(not_a_number)?),
            Some(("prompt", n)) => limits.prompt = n.parse().map_err(not_a_number)?,
            Some(("kv", kv)) => limits.kv = Kv::from_str(kv, true).map_err(|_| format!("kv={kv}: give f32 or int8"))?,
            _ => return Err(format!("\"{setting}\": give max_seq=N, kv=int8 or prompt=BYTES, separated by commas")),
        }
    }
    Ok(limits)
}

pub fn temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(t) if f32::is_finite(t) && t >= 0.0 => Ok(t),
        _ => Err("give a number from 0 upwards, such as 0.8".into()),
    }
}

pub fn top_p(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("give a number between 0 and 1, such as 0.9".into()),
    }
}

/// C's `atoi` as glibc has it, kept as llama2.c keeps it: `(int)strtol(text)`, extended with its
/// sign to 64 bits. Unlike there, a text without a number is an error.
pub fn seed(text: &str) -> Result<u64, String> {
    let number = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let digits = &digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())];
    if digits.is_empty() {
        return Err("give a whole number, such as 42".into());
    }
    let size = digits.bytes().fold(0i128, |n, digit| (10 * n + i128::from(digit - b'0')).min(1 << 64));
    let long = (if negative { -size } else { size }).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
    Ok(i64::from(long as i32) as u64)
}

pub fn steps(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "give a whole number of positions from 0 upwards, such as 256".into())
}

/// A number of tokens, where 0 is allowed.
pub fn tokens(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "give a whole number of tokens from 0 upwards, such as 40".into())
}

pub fn at_least_1(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "give a whole number from 1 upwards".into())
}

pub fn min_p(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("give a number between 0 and 1, such as 0.05".into()),
    }
}

pub fn penalty(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(x) if (0.01..=100.0).contains(&x) => Ok(x), // beyond, logits overflow
        _ => Err("give a number from 0.01 to 100, such as 1.1".into()),
    }
}

pub fn stop(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("give the text that the story ends before".into()) } else { Ok(text.into()) }
}

pub fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let n = text.parse().ok().filter(|n: &NonZeroUsize| n.get() <= MAX_THREADS);
    n.ok_or(format!("give a whole number of threads from 1 to {}", MAX_THREADS))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of `unsigned long long seed = atoi(text)` with glibc 2.36 on x86-64,
    /// read with a sign.
    #[test]
    fn seeds_are_read_as_atoi_reads_them() {
        let cases: [(&str, i64); 22] = [
            ("42", 42),
            ("0", 0),
            ("-1", -1),
            ("+7", 7),
            (" \t\n\x0b\x0c\r42", 42),
            ("12abc", 12),
            ("1.5", 1),
            ("0x10", 0),
            ("007", 7),
            ("2147483647", 2147483647),
            ("2147483648", -2147483648),
            ("-2147483649", 2147483647),
            ("4294967295", -1),
            ("4294967296", 0),
            ("5000000000", 705032704),
            ("9223372036854775807", -1),
            ("9223372036854775808", -1),
            ("18446744073709551615", -1),
            ("99999999999999999999999999999999999999999999", -1),
            ("-9223372036854775807", 1),
            ("-9223372036854775808", 0),
            ("-99999999999999999999999999999999999999999999", 0),
        ];
        for (text, want) in cases {
            assert_eq!(seed(text), Ok(want as u64), "{text:?}");
        }
        for text in ["", " ", "-", "+-1", "abc", "- 1", "\u{a0}1", "x1"] {
            assert!(seed(text).is_err(), "{text:?}");
        }
    }
}
