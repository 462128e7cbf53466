use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use infer_core::Tokenizer;
use serde_json::json;

use crate::{assert_fails, encode, index, run, scratch, stories, text, trainer};

/// A folder with a vocabulary of the stories.
fn with_vocabulary(test: &str, stories: &[String]) -> PathBuf {
    let folder = scratch(test);
    let corpus = folder.join("vocabulary.txt");
    fs::write(&corpus, stories.join("<|endoftext|>")).unwrap();
    run(&["train-vocab", text(&corpus), "--vocab-size", "300", "--out", text(&folder)]);
    folder
}

fn expected(folder: &Path, stories: &[String]) -> Vec<u32> {
    let bytes = fs::read(folder.join("tokenizer.bin")).unwrap();
    let index = index(&bytes);
    let tokenizer = Tokenizer::with_index(&bytes, &index);
    stories.iter().flat_map(|story| encode(&tokenizer, story, true)).collect()
}

fn shards(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("shard"));
    paths.sort();
    paths
}

fn read(path: &Path) -> Vec<u32> {
    let bytes = fs::read(path).unwrap();
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect()
}

fn pretokenize(corpus: &Path, folder: &Path, more: &[&str]) -> std::process::Output {
    trainer(&["pretokenize", text(corpus), "--out", text(folder)]).args(more).output().unwrap()
}

/// The first JSON shard is for validation; stories are trimmed, empty ones skipped, other fields
/// ignored.
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

/// Cut anywhere, a text gives every story once, whatever separates them.
#[test]
fn a_text_is_divided_between_stories() {
    let stories = stories(14_000);
    let folder = with_vocabulary("divided", &stories[..200]);
    let want = expected(&folder, &stories);
    for (name, separator, given) in
        [("lines", "\n\n\n".to_string(), "\\n\\n"), ("marks", "\n<|endoftext|>\n".to_string(), "<|endoftext|>")]
    {
        let corpus = folder.join(format!("{name}.txt"));
        fs::write(&corpus, stories.join(&separator) + &separator).unwrap();
        let out = folder.join(name);
        let tokenizer = folder.join("tokenizer.bin");
        let valid = folder.join("vocabulary.txt");
        let valid = if name == "marks" { text(&valid) } else { text(&corpus) };
        let options = ["--tokenizer", text(&tokenizer), "--valid", valid, "--shard-mb", "1", "--separator", given];
        let output = pretokenize(&corpus, &out, &options);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let shards = shards(&out);
        assert!(shards.len() > 3, "{} shards", shards.len());
        let tokens: Vec<u32> = shards[1..].iter().flat_map(|path| read(path)).collect();
        assert_eq!(tokens.len(), want.len(), "{name}");
        assert!(tokens == want, "{name}: other tokens");
        assert!(name == "marks" || read(&shards[0]) == want, "{name}: undivided, other tokens");
    }
}

/// Without a validation split of its own, a corpus lends one story in twenty, and both splits make
/// up the whole.
#[test]
fn a_share_is_held_out() {
    let stories = stories(2000);
    let folder = with_vocabulary("share", &stories);
    let output = pretokenize(&folder.join("vocabulary.txt"), &folder, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let count = |tokens: &[u32]| tokens.iter().filter(|&&token| token == infer_core::BOS).count();
    let splits: Vec<Vec<u32>> = shards(&folder).iter().map(|path| read(path)).collect();
    assert!((60..140).contains(&count(&splits[0])), "{} of 2000 stories", count(&splits[0]));
    assert_eq!(count(&splits[0]) + count(&splits[1]), 2000);
    assert_eq!(splits[0].len() + splits[1].len(), expected(&folder, &stories).len());
}

/// Killed at any instant, it goes on: no finished shard is made again, and the result is that of
/// one run.
#[test]
fn goes_on_after_a_kill() {
    let stories = stories(30_000);
    let folder = with_vocabulary("killed", &stories[..200]);
    let corpus = folder.join("corpus.txt");
    fs::write(&corpus, stories.join("<|endoftext|>")).unwrap();
    let valid = folder.join("vocabulary.txt");
    let tokenizer = folder.join("tokenizer.bin");
    let (whole, cut) = (folder.join("whole"), folder.join("cut"));
    let options = ["--tokenizer", text(&tokenizer), "--valid", text(&valid), "--shard-mb", "1", "--threads", "1"];
    assert!(pretokenize(&corpus, &whole, &options).status.success());
    let n = shards(&whole).len();

    let mut child = trainer(&["pretokenize", text(&corpus), "--out", text(&cut)]).args(options).spawn().unwrap();
    let start = Instant::now();
    while !cut.join("shard00001.bin").exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let first = shards(&cut);
    assert!((1..n).contains(&first.len()), "{} of {n} shards when it was killed", first.len());
    let times =
        |paths: &[PathBuf]| paths.iter().map(|path| path.metadata().unwrap().modified().unwrap()).collect::<Vec<_>>();
    let before = times(&first);
    // What a kill in the middle of a file leaves behind.
    fs::write(cut.join(".unfinished-shard"), "half").unwrap();

    let output = pretokenize(&corpus, &cut, &options);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(times(&first), before);
    assert!(!cut.join(".unfinished-shard").exists());
    let bytes = |folder: &Path| shards(folder).iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    assert!(bytes(&cut) == bytes(&whole), "the tokens differ");
}

#[test]
fn ids_above_16_bits_take_four_bytes() {
    let stories = stories(40);
    let folder = with_vocabulary("wide", &stories);
    let tokenizer = folder.join("tokenizer.bin");
    let mut bytes = fs::read(&tokenizer).unwrap();
    for filler in 300..70_000 {
        bytes.extend(f32::NEG_INFINITY.to_le_bytes());
        bytes.extend(6u32.to_le_bytes());
        bytes.extend(format!("{filler:06}").as_bytes());
    }
    // The last token is a word.
    bytes.extend([0.0f32.to_le_bytes(), 1u32.to_le_bytes()].concat());
    bytes.extend("\u{1}".as_bytes());
    fs::write(&tokenizer, &bytes).unwrap();
    let corpus = folder.join("corpus.txt");
    let text = "a\u{1}b".to_string();
    fs::write(&corpus, &text).unwrap();
    let output = pretokenize(&corpus, &folder, &["--valid", corpus.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = fs::read(folder.join("shard00000.bin")).unwrap();
    let tokens: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(tokens, expected(&folder, &[text]));
    assert!(tokens.contains(&70_000));
}

#[test]
fn bad_corpora() {
    let folder = with_vocabulary("bad-corpora", &stories(40));
    let check = |name: &str, content: &[u8], words: &[&str]| {
        let corpus = folder.join(name);
        fs::write(&corpus, content).unwrap();
        let out = folder.join("out");
        let _ = fs::remove_dir_all(&out);
        let tokenizer = folder.join("tokenizer.bin");
        let output = pretokenize(&corpus, &out, &["--tokenizer", text(&tokenizer), "--valid", text(&corpus)]);
        assert_fails(&output, words);
        assert_fails(&output, &[name]);
        assert!(shards(&out).is_empty());
    };
    check("cut.json", b"[{\"story\": \"a\"},\n{\"story\": \"b", &["line 2"]);
    check("object.json", b"{\"story\": 1}", &["line 1", "expected a string"]);
    check("field.json", b"[\n\n{\"tale\": \"a\"}]", &["line 3", "missing field `story` (or `text`)"]);
    check("after.json", b"[{\"story\": \"a\"}] x", &["trailing characters", "line 1"]);
    check("latin1.txt", b"Once upon a caf\xe9 time", &["not valid UTF-8", "byte 15"]);
    check("latin1.json", b"[{\"story\": \"caf\xe9\"}]", &["line 1"]);
    check("empty.txt", b" \n<|endoftext|> ", &["0 stories"]);
    check("one.txt", &[b'a'; 17 << 20], &["no separator \"<|endoftext|>\"", "--separator"]);
    let none = pretokenize(&folder.join("none"), &folder, &[]);
    assert_fails(&none, &["corpus", "none", "No such file"]);
    let empty = folder.join("empty");
    fs::create_dir(&empty).unwrap();
    assert_fails(&pretokenize(&empty, &folder, &[]), &["empty has no .json, .jsonl or .txt file"]);
    check("same.txt", b"one<|endoftext|>one", &["all 2 stories", "are the same text, \"one\""]);
}

#[test]
fn shards_of_something_else() {
    let stories = stories(200);
    let folder = with_vocabulary("something-else", &stories);
    let corpus = folder.join("vocabulary.txt");
    assert!(pretokenize(&corpus, &folder, &[]).status.success());
    let said = run(&["pretokenize", text(&corpus), "--out", text(&folder)]);
    assert!(said.contains("2 of 2 shards are there already"), "{said}");

    let other = with_vocabulary("something-else-2", &stories[..100]).join("tokenizer.bin");
    let output = pretokenize(&corpus, &folder, &["--tokenizer", text(&other)]);
    assert_fails(&output, &["another vocabulary than", "--out"]);
    let output = pretokenize(&corpus, &folder, &["--separator", "\\n"]);
    assert_fails(&output, &["separator \"<|endoftext|>\""]);
    let output = pretokenize(&corpus, &folder, &["--vocab-size", "512"]);
    assert_fails(&output, &["has 300 tokens", "512"]);
    fs::write(&corpus, stories[..50].join("<|endoftext|>")).unwrap();
    assert_fails(&pretokenize(&corpus, &folder, &[]), &["another corpus"]);
    let output = pretokenize(&corpus, &folder.join("new"), &[]);
    assert_fails(&output, &["new/tokenizer.bin", "train-vocab", "--tokenizer"]);
    fs::write(folder.join("meta.json"), "{}").unwrap();
    assert_fails(&pretokenize(&corpus, &folder, &[]), &["meta.json", "does not describe token shards"]);
}

/// Shards of a text that has changed are not mixed with new ones, and files of others are not
/// deleted.
#[test]
fn a_text_that_changed_is_refused() {
    let stories = stories(400);
    let folder = with_vocabulary("changed", &stories);
    let corpus = folder.join("vocabulary.txt");
    let foreign = ["shard-notes.bin", "shards.bin"].map(|name| folder.join(name));
    foreign.iter().for_each(|path| fs::write(path, "somebody's").unwrap());
    assert!(pretokenize(&corpus, &folder, &[]).status.success());
    let made = fs::read(folder.join("shard00000.bin")).unwrap();
    fs::remove_file(folder.join("shard00001.bin")).unwrap();
    let edited = fs::read_to_string(&corpus).unwrap().replace("Lily", "Lila");
    for changed in [edited.clone(), edited + "<|endoftext|>More."] {
        fs::write(&corpus, changed).unwrap();
        let again = trainer(&["pretokenize", "--out", text(&folder)]).output().unwrap();
        assert_fails(&again, &["vocabulary.txt has changed since", "--out"]);
        // What is finished stays, also when the rest is missing.
        assert_fails(&pretokenize(&corpus, &folder, &[]), &["has shards made with another corpus", "--out"]);
    }
    assert!(fs::read(folder.join("shard00000.bin")).unwrap() == made);
    fs::remove_file(folder.join("shard00000.bin")).unwrap();
    assert!(pretokenize(&corpus, &folder, &[]).status.success());
    assert!(foreign.iter().all(|path| path.exists()));
}

/// A file in the corpus that --valid names is for validation only; the rest is said once.
#[test]
fn a_validation_file_in_the_corpus() {
    let stories = stories(60);
    let folder = with_vocabulary("valid-inside", &stories);
    let corpus = folder.join("sp");
    fs::create_dir_all(corpus.join("more")).unwrap();
    fs::write(corpus.join("a.TXT"), stories[..30].join("<|endoftext|>")).unwrap();
    fs::write(corpus.join("b.NDJSON"), serde_json::to_string(&stories[30..40]).unwrap()).unwrap();
    fs::write(corpus.join("val.JSON"), serde_json::to_string(&stories[40..]).unwrap()).unwrap();
    let tokenizer = folder.join("tokenizer.bin");
    let valid = corpus.join("val.JSON");
    let out = folder.join("out");
    let output = pretokenize(&corpus, &out, &["--tokenizer", text(&tokenizer), "--valid", text(&valid)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("not used"), "{said}");
    assert!(said.contains("sp/val.JSON; folders that are not read: ") && said.contains("sp/more\n"), "{said}");
    assert_eq!(read(&shards(&out)[0]), expected(&folder, &stories[40..]));
    assert_eq!(read(&shards(&out)[1]), expected(&folder, &stories[..40]));
}

/// Line ends are the same whatever their kind, in the text, in JSON and in the separator.
#[test]
fn line_ends_of_every_kind_give_the_same_tokens() {
    let stories: Vec<String> = stories(300).iter().map(|story| story.replacen(' ', "\n", 2)).collect();
    let folder = with_vocabulary("line-ends", &stories);
    let tokenizer = folder.join("tokenizer.bin");
    let want = expected(&folder, &stories);
    for (name, end) in [("unix", "\n"), ("windows", "\r\n"), ("mac", "\r")] {
        let with_ends: Vec<String> = stories.iter().map(|story| story.replace('\n', end)).collect();
        let corpus = folder.join(format!("{name}.txt"));
        fs::write(&corpus, with_ends.join(&end.repeat(2)) + end).unwrap();
        let json = folder.join(format!("{name}.json"));
        fs::write(&json, serde_json::to_string(&with_ends).unwrap()).unwrap();
        for (corpus, separator) in [(&corpus, "\\n\\n"), (&corpus, "\\r\\n\\r\\n"), (&json, "none")] {
            let out = folder.join("out");
            let _ = fs::remove_dir_all(&out);
            let options = ["--tokenizer", text(&tokenizer), "--valid", text(corpus), "--separator", separator];
            let output = pretokenize(corpus, &out, &options);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(read(&shards(&out)[1]) == want, "{name} {separator}");
        }
    }
}

/// A text of Windows line ends with blank lines between its stories, as somebody had it.
#[test]
fn a_text_of_windows_has_its_stories() {
    let Some(corpus) = tests::shared::file("cases/crlf/stories-crlf-blank-lines.txt") else { return };
    let folder = scratch("crlf");
    run(&["train-vocab", text(&corpus), "--vocab-size", "320", "--separator", "\\n\\n", "--out", text(&folder)]);
    let said = run(&["pretokenize", text(&corpus), "--separator", "\\n\\n", "--out", text(&folder)]);
    let stories = fs::read_to_string(&corpus).unwrap().split("\r\n\r\n").count();
    assert!(stories > 200 && said.contains(&format!(" {stories} stories")), "{stories}: {said}");
    let carriage_return = u32::from(b'\r') + 3;
    assert!(shards(&folder).iter().all(|path| !read(path).contains(&carriage_return)));
}

/// What JSON files were seen to have.
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
    // Both splits are the whole file here, so that both count it.
    let null = r#"[{"story": "a"}, {"story": null}, null, {"story": null, "text": "b"}]"#;
    gives("null.json", null, &["a", "b"], "4 stories (4 null skipped)");
    assert_fails(&tokenize("other.json", "[\n[1]]"), &["other.json", "line 2", "`story` (or `text`)"]);
    let swapped = r#"[{"text": "story", "label": "a"}, {"text": "story", "label": "b"}]"#;
    assert_fails(&tokenize("swapped.json", swapped), &["all 2 stories", "the same text, \"story\"", "`text`"]);
}

/// The same, as files of somebody.
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

/// Names that say train, valid or test mean it, whatever their order, also as folders.
#[test]
fn names_say_which_split_a_file_is() {
    let stories = stories(90);
    let folder = with_vocabulary("named", &stories);
    let tokenizer = folder.join("tokenizer.bin");
    let write = |name: &str, stories: &[String]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let json = name.ends_with("json");
        let content = if json { serde_json::to_string(stories).unwrap() } else { stories.join("<|endoftext|>") };
        fs::write(path, content).unwrap();
    };
    write("flat/train.json", &stories[..40]);
    write("flat/val.json", &stories[40..60]);
    write("flat/test.json", &stories[60..80]);
    write("deep/Test/a.txt", &stories[60..80]);
    write("deep/Train/a.txt", &stories[..20]);
    write("deep/Train/b.txt", &stories[20..40]);
    write("deep/Validation/a.txt", &stories[40..60]);
    write("deep/tok512/tokenizer.json", &stories[80..]);
    for corpus in ["flat", "deep"] {
        let out = folder.join("out").join(corpus);
        let output = pretokenize(&folder.join(corpus), &out, &["--tokenizer", text(&tokenizer)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("by name; not used: "), "{said}");
        assert_eq!(read(&shards(&out)[0]), expected(&folder, &stories[40..60]), "{corpus}");
        assert_eq!(read(&shards(&out)[1]), expected(&folder, &stories[..40]), "{corpus}");
    }
    // Alone, a name says nothing.
    let out = folder.join("out/alone");
    let output = pretokenize(&folder.join("flat/test.json"), &out, &["--tokenizer", text(&tokenizer)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(folder.join("flat/train.json")).unwrap();
    let output = pretokenize(&folder.join("flat"), &folder.join("none"), &["--tokenizer", text(&tokenizer)]);
    assert_fails(&output, &["flat", "all files are for validation or for tests"]);
}

#[test]
fn train_and_val_json() {
    let Some(corpus) = tests::shared::file("cases/split") else { return };
    let folder = scratch("split-case");
    run(&["train-vocab", text(&corpus), "--vocab-size", "320", "--out", text(&folder)]);
    let said = run(&["pretokenize", text(&corpus), "--out", text(&folder)]);
    assert!(said.contains("split: training on") && said.contains("val.json, by name") && !said.contains("warning"));
    let sizes: Vec<u64> = shards(&folder).iter().map(|path| path.metadata().unwrap().len()).collect();
    assert!(sizes[1] > 5 * sizes[0], "{sizes:?}");
    let swapped = folder.join("swapped");
    let tokenizer = folder.join("tokenizer.bin");
    let options = ["--tokenizer", text(&tokenizer), "--valid", &format!("{}/train.json", text(&corpus))];
    let output = pretokenize(&corpus.join("val.json"), &swapped, &options);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("warning: the validation split has"), "{said}");
}

/// With a few stories the last tenth of the text is for validation, and no word is lost.
#[test]
fn few_stories_are_split_by_position() {
    for (name, separator, n) in [("one-story", " ", 100), ("few-stories", "<|endoftext|>", 100), ("few-json", "", 100)]
    {
        let stories = stories(n);
        let folder = with_vocabulary(name, &stories);
        let corpus = folder.join(if separator.is_empty() { "few.json" } else { "few.txt" });
        let json = serde_json::to_string(&stories).unwrap();
        fs::write(&corpus, if separator.is_empty() { json } else { stories.join(separator) }).unwrap();
        let output = pretokenize(&corpus, &folder, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.contains("the last tenth of the text, since there are too few"),
            "{said}"
        );
        let n = if name == "one-story" { 1 } else { n };
        assert!(said.contains(&format!("2 shards, {n} stories, ")), "{said}");
        let [valid, train] = [0, 1].map(|i| read(&shards(&folder)[i]).len());
        assert!((8 * valid..11 * valid).contains(&train), "{valid} of {}", valid + train);
        let bytes = fs::read(folder.join("tokenizer.bin")).unwrap();
        let index = index(&bytes);
        let tokenizer = Tokenizer::with_index(&bytes, &index);
        let words = |i: usize| {
            let tokens = read(&shards(&folder)[i]);
            let text: Vec<u8> = tokens
                .windows(2)
                .flat_map(|pair| {
                    if pair[1] == infer_core::BOS { &b" "[..] } else { tokenizer.decode(pair[0], pair[1]).unwrap() }
                })
                .copied()
                .collect();
            String::from_utf8(text).unwrap()
        };
        let text = format!("{} {}", words(1), words(0));
        assert!(text.split_whitespace().eq(stories.join(" ").split_whitespace()), "{name}");
    }
}

/// What is skipped counts once, though both splits read it.
#[test]
fn empty_stories_count_once() {
    let mut stories = stories(300);
    let folder = with_vocabulary("empty", &stories);
    for _ in 0..29 {
        stories.insert(100, " ".into());
    }
    let corpus = folder.join("corpus.txt");
    fs::write(&corpus, stories.join("<|endoftext|>")).unwrap();
    let output = pretokenize(&corpus, &folder, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("300 stories (29 empty skipped)"), "{said}");
}

/// A try that fails does not stand in the way of the next one; what is finished is never replaced.
#[test]
fn a_failed_try_leaves_nothing_in_the_way() {
    let stories = stories(400);
    let folder = with_vocabulary("failed-try", &stories);
    let other = with_vocabulary("failed-try-2", &stories[..100]).join("tokenizer.bin");
    let tokenizer = folder.join("tokenizer.bin");
    let corpus = folder.join("corpus.txt");
    // The last story is no UTF-8.
    fs::write(&corpus, [stories.join("\n\n").as_bytes(), b"\n\nlast\xff"].concat()).unwrap();
    let out = folder.join("out");
    let attempt = |separator: &str, tokenizer: &Path| {
        pretokenize(&corpus, &out, &["--tokenizer", text(tokenizer), "--separator", separator])
    };
    assert_fails(&attempt("\\n\\n", &tokenizer), &["not valid UTF-8"]);
    assert!(out.join("meta.json").exists());
    assert_fails(&attempt("\\n", &other), &["not valid UTF-8"]);
    fs::write(&corpus, stories.join("\n\n")).unwrap();
    let output = attempt("\\n\\n", &tokenizer);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(out.join("tokenizer.bin")).unwrap(), fs::read(&tokenizer).unwrap());
    let tokens = || shards(&out).iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    let before = tokens();
    assert_fails(&attempt("\\n", &tokenizer), &["has shards made with the separator \"\\n\\n\"", "--out"]);
    assert!(tokens() == before);
}

/// A damaged shard is refused by name, and made again by the command that the message gives.
#[test]
fn a_damaged_shard_is_made_again() {
    let stories = stories(400);
    let folder = with_vocabulary("damaged", &stories);
    let corpus = folder.join("corpus.txt");
    fs::write(&corpus, stories.join("\n\n")).unwrap();
    assert!(pretokenize(&corpus, &folder, &["--separator", "\\n\\n"]).status.success());
    let path = folder.join("shard00001.bin");
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[1000] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() - 2]] {
        fs::write(&path, damaged).unwrap();
        let train = trainer(&["--data", text(&folder), "--out-dir", text(&folder.join("run"))]).output().unwrap();
        let again = ["pretokenize", "--out", text(&folder)];
        assert_fails(&train, &["shard00001.bin is damaged", &again.join(" ")]);
        let said = run(&again);
        assert!(said.contains("it is made again") && said.contains("1 of 2 shards are there"), "{said}");
        assert!(fs::read(&path).unwrap() == whole);
    }
    // The vocabulary of finished shards is not replaced either.
    let anew =
        trainer(&["train-vocab", text(&corpus), "--vocab-size", "299", "--out", text(&folder)]).output().unwrap();
    assert_fails(&anew, &["shards that were made with another tokenizer.bin", "--out"]);
}
