//! Added tokens: names such as `<|im_start|>` that stand for one token as a whole.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use anyhow::{Context, ensure};

/// Bytes of all names together: far more than any vocabulary has, and little to search for.
const MOST_BYTES: usize = 1 << 20;

/// A token that a name stands for.
#[derive(Clone, Debug)]
pub struct Added {
    pub token: u32,
    pub name: String,
    /// Whether white space before the name belongs to the token.
    pub lstrip: bool,
    /// Whether white space after the name belongs to the token.
    pub rstrip: bool,
}

/// A stretch of a text.
#[derive(Debug, PartialEq)]
pub enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds added tokens in texts.
#[derive(Debug)]
pub struct Matcher {
    automaton: AhoCorasick,
    /// Finds all names, in capitals or not, also those inside of others.
    any_case: AhoCorasick,
    tokens: Vec<Added>,
}

impl Matcher {
    pub fn new(tokens: Vec<Added>) -> anyhow::Result<Matcher> {
        let bytes: usize = tokens.iter().map(|added| added.name.len()).sum();
        ensure!(bytes <= MOST_BYTES, "the added tokens have {bytes} bytes, more than {MOST_BYTES}");
        let build = |kind, any_case| {
            AhoCorasick::builder()
                .match_kind(kind)
                .ascii_case_insensitive(any_case)
                .kind(Some(AhoCorasickKind::ContiguousNFA)) // a DFA of so many names takes much memory
                .build(tokens.iter().map(|added| &added.name))
                .context("added tokens")
        };
        let (automaton, any_case) = (build(MatchKind::LeftmostLongest, false)?, build(MatchKind::Standard, true)?);
        Ok(Matcher { automaton, any_case, tokens })
    }

    pub fn tokens(&self) -> &[Added] {
        &self.tokens
    }

    pub fn has(&self, token: u32) -> bool {
        self.tokens.iter().any(|added| added.token == token)
    }

    pub fn named(&self, name: &str) -> Option<u32> {
        self.tokens.iter().find(|added| added.name == name).map(|added| added.token)
    }

    /// The token whose name the text begins with.
    pub fn first(&self, text: &str) -> Option<&Added> {
        self.automaton.find(text).filter(|found| found.start() == 0).map(|found| &self.tokens[found.pattern()])
    }

    /// Cuts a text at the names: the leftmost first, and the longest of those that begin there.
    pub fn split<'t>(&self, text: &'t str) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let mut from = 0;
        for found in self.automaton.find_iter(text) {
            let added = &self.tokens[found.pattern()];
            let before = &text[from.min(found.start())..found.start()];
            let before = if added.lstrip { before.trim_end() } else { before };
            if !before.is_empty() {
                parts.push(Part::Text(before));
            }
            parts.push(Part::Token(added.token));
            let after = &text[found.end()..];
            from = text.len() - if added.rstrip { after.trim_start() } else { after }.len();
        }
        if from < text.len() {
            parts.push(Part::Text(&text[from..]));
        }
        parts
    }

    /// Puts `mark` behind the first character of every name in the text, in capitals or not, so
    /// that it is none any more. Names have two characters at least.
    pub fn break_names(&self, text: &str, mark: char) -> String {
        let mut broken = String::with_capacity(text.len());
        let mut from = 0;
        for start in self.starts(text) {
            let end = start + text[start..].chars().next().map_or(0, char::len_utf8);
            broken.push_str(&text[from..end]);
            broken.push(mark);
            from = end;
        }
        broken + &text[from..]
    }

    /// Where names begin, also those inside of others.
    fn starts(&self, text: &str) -> Vec<usize> {
        let mut starts: Vec<usize> = self.any_case.find_overlapping_iter(text).map(|found| found.start()).collect();
        starts.sort_unstable();
        starts.dedup();
        starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(names: &[&str]) -> Matcher {
        let added = |(token, name): (usize, &&str)| Added {
            token: token as u32,
            name: name.to_string(),
            lstrip: false,
            rstrip: name.ends_with('|'),
        };
        Matcher::new(names.iter().enumerate().map(added).collect()).unwrap()
    }

    #[test]
    fn names_are_found_leftmost_and_longest() {
        let names = matcher(&["<a>", "<a><b>", "|x|"]);
        assert_eq!(names.split("1<a><b>2<a>"), [Part::Text("1"), Part::Token(1), Part::Text("2"), Part::Token(0)]);
        assert_eq!(names.split("|x| \n y"), [Part::Token(2), Part::Text("y")]);
        assert_eq!(names.split(""), []);
        assert_eq!(matcher(&[]).split("<a>"), [Part::Text("<a>")]);
    }

    #[test]
    fn broken_names_are_none() {
        let names = matcher(&["<a>", "<a><b>", "é<a>"]);
        for text in ["<a>", "x<A>y", "<a><b><a>", "<<a>>", "é<a>", "é"] {
            let broken = names.break_names(text, '\u{e000}');
            assert_eq!(broken.replace('\u{e000}', ""), text);
            let cased = broken.to_lowercase();
            assert!(names.split(&cased).iter().all(|part| matches!(part, Part::Text(_))), "{broken:?}");
        }
    }
}
