//! Token shards are whole, the same after a kill, and never mixed.

mod json;
mod splits;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{assert_fails, run, scratch, stories, text, trainer, vocabulary};

/// A folder with a vocabulary of the stories.
fn with_vocabulary(test: &str, stories: &[String]) -> PathBuf {
    let folder = scratch(test);
    let corpus = folder.join("vocabulary.txt");
    fs::write(&corpus, stories.join("<|endoftext|>")).unwrap();
    run(&["train-vocab", text(&corpus), "--vocab-size", "300", "--out", text(&folder)]);
    folder
}

fn expected(folder: &Path, stories: &[String]) -> Vec<u32> {
    let tokenizer = vocabulary(folder);
    stories.iter().flat_map(|story| tokenizer.encode(story).unwrap()).collect()
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

/// A text gives every story once, wherever it is cut and whatever separates the stories.
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

/// After a kill at any instant pretokenize goes on: it makes no finished shard again, and the
/// result is that of one run.
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
    // A kill in the middle of a file leaves such a file behind.
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
    let fillers = (300..70_000).map(|filler| (f32::NEG_INFINITY, format!("{filler:06}")));
    let mut more = Vec::new();
    infer_core::tokenizer::write(&mut more, 6, fillers.chain([(0.0, "\u{1}".into())])).unwrap();
    bytes.extend(&more[4..]); // the entries alone; the last token is a word
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
        // Finished shards stay, also when others are missing.
        assert_fails(&pretokenize(&corpus, &folder, &[]), &["has shards made with another corpus", "--out"]);
    }
    assert!(fs::read(folder.join("shard00000.bin")).unwrap() == made);
    fs::remove_file(folder.join("shard00000.bin")).unwrap();
    assert!(pretokenize(&corpus, &folder, &[]).status.success());
    assert!(foreign.iter().all(|path| path.exists()));
}

/// All kinds of line ends are equivalent in the text, in JSON and in the separator.
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

/// A text with Windows line ends and blank lines between its stories is read story by story.
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

/// A failed try does not hinder the next one, and finished shards are never replaced.
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
