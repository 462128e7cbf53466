//! Corpora in JSON are read as people have them.

use std::fs;

use serde_json::json;

use super::{expected, pretokenize, read, shards, with_vocabulary};
use crate::{assert_fails, run, stories, text};

/// The first JSON file is for validation. Stories are trimmed, empty ones are skipped, and other
/// fields are ignored.
#[test]
fn json_shards() {
    let stories = stories(40);
    let folder = with_vocabulary("json", &stories);
    let corpus = folder.join("corpus");
    fs::create_dir(&corpus).unwrap();
    let objects = |stories: &[String]| -> Vec<_> {
        stories
            .iter()
            .map(|story| json!({"source": "none", "story": format!("\n {story}\n"), "words": [1, 2]}))
            .collect()
    };
    let mut first = objects(&stories[..10]);
    first.insert(3, json!({"story": " \n"}));
    fs::write(corpus.join("data00.json"), serde_json::to_string_pretty(&first).unwrap()).unwrap();
    fs::write(corpus.join("data01.json"), serde_json::to_string(&objects(&stories[10..20])).unwrap()).unwrap();
    let lines: Vec<_> = stories[20..].iter().map(|story| json!({"text": story}).to_string()).collect();
    fs::write(corpus.join("data02.jsonl"), lines.join("\n")).unwrap();
    let said = run(&["pretokenize", text(&corpus), "--out", text(&folder), "--threads", "2"]);
    assert!(said.contains("40 stories (1 empty skipped)"), "{said}");
    assert_eq!(read(&shards(&folder)[0]), expected(&folder, &stories[..10]));
    assert_eq!(read(&shards(&folder)[1]), expected(&folder, &stories[10..]));
    assert_eq!(shards(&folder).len(), 2);
}

/// JSON files in the wild have byte order marks, nulls, plain strings and other fields.
#[test]
fn json_of_others() {
    let folder = with_vocabulary("json-of-others", &stories(40));
    let out = folder.join("out");
    let tokenize = |name: &str, content: &str| {
        let corpus = folder.join(name);
        fs::write(&corpus, content).unwrap();
        let _ = fs::remove_dir_all(&out);
        let tokenizer = folder.join("tokenizer.bin");
        pretokenize(&corpus, &out, &["--tokenizer", text(&tokenizer), "--valid", text(&corpus)])
    };
    let gives = |name: &str, content: &str, stories: &[&str], words: &str| {
        let output = tokenize(name, content);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(words), "{name}: {said}");
        let stories: Vec<String> = stories.iter().map(|story| story.to_string()).collect();
        assert_eq!(read(&out.join("shard00001.bin")), expected(&folder, &stories), "{name}");
    };
    gives("bom.json", "\u{feff}[{\"story\": \"a\"}, {\"story\": \"b\"}]", &["a", "b"], "2 shards");
    gives("bom.jsonl", "\u{feff}{\"story\": \"a\"}\r\n{\"story\": \"b\"}\r\n", &["a", "b"], "2 shards");
    gives("both.json", r#"[{"story": "a", "text": "x"}, {"text": "x", "story": "b"}]"#, &["a", "b"], "2 shards");
    gives("strings.json", r#"["a", "b", ""]"#, &["a", "b"], "empty skipped");
    gives("strings.jsonl", "\"a\"\n\"b\"\n", &["a", "b"], "2 shards");
    // Both splits are the whole file here, so both count its nulls.
    let null = r#"[{"story": "a"}, {"story": null}, null, {"story": null, "text": "b"}]"#;
    gives("null.json", null, &["a", "b"], "4 stories (4 null skipped)");
    assert_fails(&tokenize("other.json", "[\n[1]]"), &["other.json", "line 2", "`story` (or `text`)"]);
    let swapped = r#"[{"text": "story", "label": "a"}, {"text": "story", "label": "b"}]"#;
    assert_fails(&tokenize("swapped.json", swapped), &["all 2 stories", "the same text, \"story\"", "`text`"]);
}

/// JSON files that somebody had are read or refused as they should be.
#[test]
fn json_cases() {
    let Some(cases) = tests::shared::file("cases/json") else { return };
    let folder = with_vocabulary("json-cases", &stories(40));
    let tokenize = |name: &str| {
        let out = folder.join(name).with_extension("");
        let tokenizer = folder.join("tokenizer.bin");
        let output = pretokenize(&cases.join(name), &out, &["--tokenizer", text(&tokenizer)]);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (name, words) in [
        ("bom.json", "the last tenth of the text"),
        ("both-fields.json", "stories"),
        ("null-story.json", "(1 null skipped)"),
        ("strings.json", "stories"),
    ] {
        let (succeeds, said) = tokenize(name);
        assert!(succeeds && said.contains(words), "{name}: {said}");
    }
    for (name, words) in [("swapped-key-value.json", "the same text"), ("lone-surrogate.json", "line 1")] {
        let (succeeds, said) = tokenize(name);
        assert!(!succeeds && said.contains(words) && said.contains(name), "{name}: {said}");
    }
}
