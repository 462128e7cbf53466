//! Finds the texts that end a story, even where they span several tokens.

/// Takes a stream of bytes and gives it back up to the first stop text.
pub struct Stops<'a> {
    texts: &'a [String],
    /// Bytes that may turn out to begin a stop text.
    held: Vec<u8>,
}

impl<'a> Stops<'a> {
    pub fn new(texts: &'a [String]) -> Stops<'a> {
        Stops { texts, held: Vec::new() }
    }

    /// Takes the bytes of a token. Returns those that certainly come before a stop text, and
    /// whether one is complete.
    pub fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        for &byte in bytes {
            self.held.push(byte);
            let complete = self.texts.iter().filter(|text| self.held.ends_with(text.as_bytes()));
            if let Some(longest) = complete.map(String::len).max() {
                self.held.truncate(self.held.len() - longest);
                return (self.rest(), true);
            }
        }
        let keep = self.texts.iter().map(|text| self.begun(text.as_bytes())).max().unwrap_or(0);
        (self.held.drain(..self.held.len() - keep).collect(), false)
    }

    /// Takes the bytes that were held back, at the end of the story.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest beginning of `text` with which the held bytes end.
    fn begun(&self, text: &[u8]) -> usize {
        (1..text.len().min(self.held.len() + 1)).rev().find(|&n| self.held.ends_with(&text[..n])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text after each of the tokens and at the end, up to the stop text, shown as a bar.
    fn shown(texts: &[&str], tokens: &[&str]) -> Vec<String> {
        let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
        let mut stops = Stops::new(&texts);
        let mut shown = Vec::new();
        for token in tokens {
            let (bytes, stopped) = stops.push(token.as_bytes());
            shown.push(String::from_utf8(bytes).unwrap() + if stopped { "|" } else { "" });
            if stopped {
                return shown;
            }
        }
        shown.push(String::from_utf8(stops.rest()).unwrap());
        shown
    }

    #[test]
    fn a_stop_text_ends_the_stream_wherever_tokens_end() {
        assert_eq!(shown(&["end"], &["an end of it"]), ["an |"]);
        assert_eq!(shown(&["end"], &["an e", "n", "d"]), ["an ", "", "|"]);
        assert_eq!(shown(&["aab"], &["aa", "a", "b"]), ["", "a", "|"]);
        assert_eq!(shown(&["abab", "c"], &["aba", "c", "d"]), ["", "aba|"]);
        assert_eq!(shown(&["b", "ab"], &["xab"]), ["x|"]);
    }

    #[test]
    fn what_turns_out_to_be_no_stop_text_is_shown() {
        assert_eq!(shown(&["end"], &["en", "t", "e"]), ["", "ent", "", "e"]);
        assert_eq!(shown(&["\n\n"], &["a\n", "b\n"]), ["a", "\nb", "\n"]);
        assert_eq!(shown(&[], &["a", "b"]), ["a", "b", ""]);
        assert_eq!(shown(&["é"], &["è"]), ["è", ""]);
    }

    #[test]
    fn the_way_a_text_is_cut_into_tokens_does_not_matter() {
        let text = "ababacabab-babcab";
        for stops in [&["abac"][..], &["cab", "-b"], &["bab-"], &["zz", "b"]] {
            let want = shown(stops, &[text]).concat();
            for at in 0..text.len() {
                for second in at..text.len() {
                    let tokens = [&text[..at], &text[at..second], &text[second..]];
                    assert_eq!(shown(stops, &tokens).concat(), want, "{stops:?} {tokens:?}");
                }
            }
        }
    }
}
