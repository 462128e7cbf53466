//! Suggests a command for a first word that is not a file.

use std::path::Path;

use clap::CommandFactory;

use super::Args;

/// Names the command that this word resembles, unless there is a file of that name.
pub fn command(word: &Path) -> Option<String> {
    if word.exists() {
        return None;
    }
    let name = word.to_str()?.to_lowercase();
    let modes = ["chat", "generate"].map(String::from);
    let commands: Vec<_> = Args::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    if commands.contains(&name) {
        return Some(format!("the command comes before all flags: infer-cli {name}"));
    }
    let meant = modes.iter().chain(&commands).filter(|command| is_close(&name, command));
    let meant = meant.min_by_key(|command| strsim::damerau_levenshtein(&name, command))?;
    let mode = if modes.contains(meant) { "-m " } else { "" };
    Some(format!("\"{}\" is neither a file nor a command: did you mean infer-cli {mode}{meant}?", word.display()))
}

/// Whether the word is a beginning of at least three letters, or has at most one letter in three
/// mistyped.
fn is_close(word: &str, command: &str) -> bool {
    (word.len() >= 3 && command.starts_with(word)) || strsim::damerau_levenshtein(word, command) <= command.len() / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_words_are_commands() {
        for (word, meant) in [
            ("chat", "-m chat"),
            ("Chats", "-m chat"),
            ("generat", "-m generate"),
            ("insepct", "inspect"),
            ("tokenise", "tokenize"),
            ("quant", "quantize"),
            ("perplexety", "perplexity"),
            ("serail", "serial"),
        ] {
            let message = command(Path::new(word)).unwrap_or_default();
            assert!(message.contains(&format!("infer-cli {meant}?")), "{word}: {message}");
        }
        assert!(command(Path::new("inspect")).is_some_and(|message| message.contains("before all flags")));
        for word in ["model.bin", "story", "chat.bin", "./chat", "", "in", "stories260K", "src"] {
            assert_eq!(command(Path::new(word)), None, "{word}");
        }
    }
}
