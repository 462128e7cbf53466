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
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
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

/// The first JSON shard is for validation; stories are trimmed, empty ones skipped, other fields ignored.
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
    let said = run(&["pretokenize", text(&corpus), "--out", text(&folder), "--workers", "2"]);
    assert!(said.contains("40 stories (1 empty ones skipped)"), "{said}");
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

/// Without a validation split of its own, a corpus lends one story in twenty, and both splits make up the whole.
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

/// Killed at any instant, it goes on: no finished shard is made again, and the result is that of one run.
#[test]
fn goes_on_after_a_kill() {
    let stories = stories(30_000);
    let folder = with_vocabulary("killed", &stories[..200]);
    let corpus = folder.join("corpus.txt");
    fs::write(&corpus, stories.join("<|endoftext|>")).unwrap();
    let valid = folder.join("vocabulary.txt");
    let tokenizer = folder.join("tokenizer.bin");
    let (whole, cut) = (folder.join("whole"), folder.join("cut"));
    let options = ["--tokenizer", text(&tokenizer), "--valid", text(&valid), "--shard-mb", "1", "--workers", "1"];
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
    check("field.json", b"[\n\n{\"tale\": \"a\"}]", &["line 3", "missing field `story`"]);
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
    fs::write(folder.join("few.txt"), "one<|endoftext|>two").unwrap();
    let few = pretokenize(
        &folder.join("few.txt"),
        &folder.join("few"),
        &["--tokenizer", text(&folder.join("tokenizer.bin"))],
    );
    assert_fails(&few, &["too few for a training and a validation split", "--valid"]);
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
    assert_fails(&output, &["meta.json", "another vocabulary, of 300 tokens", "--out"]);
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
