//! Stories are split into those for training and those for validation.

use std::fs;

use super::{expected, pretokenize, read, shards, with_vocabulary};
use crate::{assert_fails, run, scratch, stories, text, vocabulary};

/// From a corpus without a validation split, one story in twenty is held out, and both splits
/// together are the whole corpus.
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

/// A file in the corpus that --valid names is for validation only. The message names each file
/// once.
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

/// Files and folders whose names contain train, valid or test are used so, whatever their order.
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
    // The name of a single file does not matter.
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
        let tokenizer = vocabulary(&folder);
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

/// A skipped story counts once, though both splits read it.
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
