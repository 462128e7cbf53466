//! Stories: flags, and what bad input gets.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

#[test]
fn long_names_and_the_older_form_do_the_same() {
    let Some((model, tok)) = stories() else { return };
    let short = run(&[&model, "-z", &tok, "-t", "0.5", "-p", "0.8", "-s", "3", "-n", "30", "-i", "One day"]);
    let long = run(&[
        "--temperature",
        "0.5",
        "--top-p=0.8",
        "--seed",
        "3",
        "--steps",
        "30",
        "--prompt",
        "One day",
        "--tokenizer",
        &tok,
        "--mode",
        "generate",
        &model,
    ]);
    let positional = run(&[&model, "0.5", "30", "One day", "-z", &tok, "-p", "0.8", "-s", "3"]);
    assert!(stdout(&short).starts_with("One day"));
    assert_eq!(stdout(&short), stdout(&long));
    assert_eq!(stdout(&short), stdout(&positional));
}

#[test]
fn tokenizer_beside_the_model_is_the_default() {
    let (_, model) = random_model("default_tokenizer", |_| {});
    assert!(!stdout(&run(&[&model, "-s", "1", "-n", "20"])).is_empty());
}

#[test]
fn the_clock_seeds_differently() {
    let (_, model) = random_model("clock", |_| {});
    let stories: Vec<Vec<u8>> = (0..4).map(|_| run(&[&model, "-n", "40"]).stdout).collect();
    assert!(stories.iter().any(|story| *story != stories[0]), "four equal stories");
}

#[test]
fn help_names_the_flags() {
    let help = run(&["--help"]);
    assert!(stdout(&help).contains("--temperature") && stdout(&help).contains("--kv"));
}

#[test]
fn a_story_with_an_int8_kv_cache() {
    let Some((model, tok)) = stories() else { return };
    let tell = |more: &[&str]| {
        let fixed = [model.as_str(), "-z", &tok, "-t", "0", "-n", "100", "-i", "Once upon a time"];
        stdout(&run(&[&fixed, more].concat())).to_owned()
    };
    let story = tell(&["--kv", "int8"]);
    assert!(story.starts_with("Once upon a time, there was a "), "{story}");
    assert_eq!(tell(&["--kv", "int8", "--threads", "3"]), story);
    assert_fails(&run(&[&model, "-z", &tok, "--kv", "int4"]), 2, &["int4", "int8"]);
    let (_, heads_of_2) = random_model("heads_of_2", |_| {});
    assert_fails(&run(&[&heads_of_2, "--kv", "int8"]), 1, &["head size"]);
}

#[test]
fn values_out_of_range() {
    for (flag, value) in [
        ("-t", "abc"),
        ("-t", "-1"),
        ("-t", "nan"),
        ("-t", "inf"),
        ("-p", "1.5"),
        ("-p", "-0.1"),
        ("-s", "abc"),
        ("-s", ""),
        ("-s", "-"),
        ("-n", "-5"),
        ("-n", "99999999999999999999999"),
        ("-m", "sing"),
        ("--top-k", "-1"),
        ("--top-k", "1.5"),
        ("--min-p", "1.1"),
        ("--min-p", "nan"),
        ("--repeat-penalty", "0"),
        ("--repeat-penalty", "-1"),
        ("--repeat-penalty", "inf"),
        ("--repeat-last-n", "-1"),
        ("--stop", ""),
        ("--threads", "0"),
        ("--threads", "1025"),
        ("--threads", "1000000000"),
    ] {
        assert_fails(&run(&["model.bin", flag, value]), 2, &[value]);
    }
    for command in [&["perplexity", "--windows"][..], &["perplexity", "--window"], &["bench", "--repeat"]] {
        for value in ["-1", "1.5", "abc", "99999999999999999999999"] {
            assert_fails(&run(&[command, &[value]].concat()), 2, &[value, "give a whole number"]);
        }
    }
    assert_fails(&run(&["model.bin", "-t"]), 2, &["--temperature"]);
    assert_fails(&run(&["model.bin", "-x", "1"]), 2, &["-x"]);
    assert_fails(&run(&["model.bin", "abc"]), 2, &["abc"]);
}

#[test]
fn prompts_that_do_not_fit() {
    let (_, model) = random_model("prompts", |_| {});
    let long = "a b ".repeat(40);
    for n in ["0", "256", "40"] {
        assert_fails(&run(&[&model, "-n", n, "-i", &long]), 2, &["prompt has", "tokens", "40 positions"]);
    }
    assert_fails(&run(&[&model, "-n", "3", "-i", "a b"]), 2, &["4 tokens", "3 positions"]);
    assert!(run(&[&model, "-n", "4", "-i", "a b"]).status.success(), "the last position draws a token");
    assert_fails(&run_with_input(&[&model, "-m", "chat", "-y", ""], long.as_bytes()), 2, &["message has", "40"]);
}

#[test]
fn arguments_that_are_no_text() {
    let (_, model) = random_model("no_text", |_| {});
    let output = cli().args([OsStr::new(&model), OsStr::new("-i"), OsStr::from_bytes(b"a\xff")]).output().unwrap();
    assert_fails(&output, 2, &["not valid UTF-8", "a\u{fffd}"]);
}

#[test]
fn missing_and_damaged_files() {
    let (folder, model) = random_model("damaged", |_| {});
    assert_fails(&run(&["nowhere.bin"]), 1, &["nowhere.bin"]);
    assert_fails(&run(&[folder.to_str().unwrap()]), 1, &["not a regular file"]);
    let empty = folder.join("empty.bin");
    std::fs::write(&empty, b"").unwrap();
    assert_fails(&run(&[empty.to_str().unwrap()]), 1, &["empty.bin", "0 bytes"]);

    let whole = std::fs::read(&model).unwrap();
    for len in [1, 27, 28, 1000, whole.len() - 1] {
        std::fs::write(&model, &whole[..len]).unwrap();
        for args in [&[model.as_str()][..], &["inspect", &model]] {
            assert_fails(&run(args), 1, &["model.bin", &format!("{len} bytes"), "cut short"]);
        }
    }
    std::fs::write(&model, &whole).unwrap();

    let tokenizer = folder.join("tokenizer.bin");
    let whole = std::fs::read(&tokenizer).unwrap();
    std::fs::write(&tokenizer, &whole[..whole.len() - 1]).unwrap();
    assert_fails(&run(&[&model]), 1, &["tokenizer.bin", "token 299 of 300"]);
    std::fs::write(&tokenizer, tokenizer_file(&[], 299)).unwrap();
    assert_fails(&run(&[&model]), 1, &["token 299 of 300"]);
    std::fs::remove_file(&tokenizer).unwrap();
    assert_fails(&run(&[&model]), 1, &["tokenizer.bin", "-z"]);
    std::fs::write(&tokenizer, tokenizer_file(&[], 301)).unwrap();
    let output = run(&[&model, "-n", "5"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: "), "a larger vocabulary goes unnoticed");
}

/// The story is longer than the pipe holds, so the program still has weights to read after the cut.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_is_cut_while_it_runs_ends_the_story_with_an_error() {
    let folder = scratch("cut");
    let mut model = RandomModel::new(Config::new(8, 5, 2, 4, 300, 400).with_kv_heads(2), 3);
    // Only the long pieces are likely.
    model.tensor_mut(infer_core::format::TensorName::TokEmb)[8..259 * 8].fill(0.0);
    let path = folder.join("model.bin");
    std::fs::write(&path, model.to_file(Version::V0).bytes()).unwrap();
    let pieces: Vec<String> = (0..41).map(|i| format!("{i} ").repeat(1000)).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&pieces, 300)).unwrap();
    for threads in ["1", "2"] {
        std::fs::write(&path, model.to_file(Version::V0).bytes()).unwrap();
        let mut command = cli();
        command.arg(&path).args(["-t", "0", "-n", "0", "--threads", threads]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut start = [0; 100];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut start).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_fails(&output, 1, &["that is in use was cut"]);
        assert_eq!(output.stderr.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }
}

#[test]
fn a_model_that_is_changed_while_it_runs_is_a_warning() {
    let (_, model) = random_model("changed", |_| {});
    let mut command = cli();
    command.args([&model, "-m", "chat", "-y", ""]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = pipes.unwrap();
    let mut question = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut question).unwrap(); // the model is open
    let bytes = std::fs::read(&model).unwrap();
    std::fs::File::options().write(true).open(&model).unwrap().write_all(&bytes[..100]).unwrap();
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("model.bin was changed while it was in use"), "{said}");
}

#[test]
fn damaged_weights_end_the_story_with_an_error() {
    let nan = |model: &mut RandomModel| model.tensor_mut(infer_core::format::TensorName::W2)[17] = f32::NAN;
    let (_, model) = random_model("nan", nan);
    assert_fails(&run(&[&model, "-t", "0"]), 1, &["model.bin", "not a finite number", "damaged"]);
}

#[test]
fn a_context_too_large_for_memory_is_refused() {
    let folder = scratch("huge_context");
    // 2^31 positions of 512 layers of 32 keys and values: 2^48 bytes, more than a process can have.
    let mut file = RandomModel::new(config(32, 2, 512, 1, 1), 3).to_file(Version::V1).bytes().to_vec();
    file[32..36].copy_from_slice(&i32::MAX.to_le_bytes()); // seq_len: no tensor of version 1 has that size
    let model = folder.join("model.bin");
    std::fs::write(&model, file).unwrap();
    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&[" "], 300)).unwrap();
    let model = model.to_str().unwrap();
    assert!(run(&[model, "-n", "9"]).status.success(), "a small run needs a small cache");
    assert_fails(&run(&[model, "-n", "0"]), 1, &["KV cache", "-n"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let Some((model, tok)) = stories() else { return };
    let mut command = cli();
    command.args([&model, "-z", &tok, "-t", "0", "-n", "512"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
