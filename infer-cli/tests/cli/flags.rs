//! What flags do to a story, and how the command line forgives.

use super::*;

/// A story of stories260K, 100 positions with seed 5, and `more`.
fn tell(more: &[&str]) -> Option<Output> {
    let (model, tok) = stories()?;
    Some(run(&[&[model.as_str(), "-z", &tok, "-s", "5", "-n", "100"], more].concat()))
}

/// The stories are those of llama2.c.
#[test]
fn seeds_are_those_of_llama2c() {
    let Some((model, tok)) = stories() else { return };
    let lily = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her \
                friends. One day, she saw\n";
    for (seed, story) in [
        (
            "-5",
            "Once upon a time, there was a little boy named Tim. He liked to play with his toy cars and run around. One \
             day, he w\n",
        ),
        (
            "5000000000",
            "Once upon a time, there was a reindeer. She lived in a tall house. The house was a big bear who had a\n",
        ),
        ("12abc", lily),
        (" +12", lily),
    ] {
        assert_eq!(stdout(&run(&[&model, "-z", &tok, "-n", "40", "-s", seed])), story, "{seed}");
    }
}

#[test]
fn a_prompt_of_exactly_n_tokens_draws_one_as_in_llama2c() {
    let Some((model, tok)) = stories() else { return };
    let tell = |n: &str| run(&[&model, "-z", &tok, "-s", "7", "-n", n, "-i", "Once upon a time"]);
    assert_eq!(stdout(&tell("5")), "Once upon a time,\n");
    assert_eq!(stdout(&tell("6")), "Once upon a time, there\n");
    assert_fails(&tell("4"), 2, &["prompt has 5 tokens", "4 positions"]);
}

#[test]
fn top_k_and_min_p_of_one_token_are_greedy() {
    let Some(greedy) = tell(&["-t", "0"]) else { return };
    let greedy = stdout(&greedy);
    assert_eq!(stdout(&tell(&["--top-k", "1"]).unwrap()), greedy);
    assert_eq!(stdout(&tell(&["--min-p", "1"]).unwrap()), greedy);
    let sampled = tell(&[]).unwrap();
    assert_ne!(stdout(&sampled), greedy);
    for off in [["--top-k", "0"], ["--top-k", "99999999999"], ["--min-p", "0"], ["--repeat-penalty", "1"]] {
        assert_eq!(stdout(&tell(&off).unwrap()), stdout(&sampled), "{off:?}");
    }
}

#[test]
fn the_penalty_looks_at_the_last_tokens() {
    let Some(greedy) = tell(&["-t", "0"]) else { return };
    let story = |window: &str| -> Vec<u64> {
        let flags = ["-t", "0", "--json", "--repeat-penalty", "100", "--repeat-last-n", window];
        serde_json::from_value(json(&tell(&flags).unwrap())["tokens"].clone()).unwrap()
    };
    for (window, n) in [("5", 5), ("20", 20)] {
        for tokens in story(window).windows(n + 1) {
            assert!(!tokens[..n].contains(&tokens[n]), "{} within the last {n}", tokens[n]);
        }
    }
    assert_ne!(story("5"), story("20"));
    assert_eq!(stdout(&tell(&["-t", "0", "--repeat-penalty", "9", "--repeat-last-n", "0"]).unwrap()), stdout(&greedy));
}

#[test]
fn a_story_ends_before_a_stop_text() {
    let Some(whole) = tell(&[]) else { return };
    let whole = stdout(&whole);
    for at in [5, 31, 60] {
        let stop = &whole[at..at + 12]; // it spans several tokens, and begins and ends inside of tokens
        let before = &whole[..whole.find(stop).unwrap()];
        assert_eq!(stdout(&tell(&["--stop", "no such text", "--stop", stop]).unwrap()), format!("{before}\n"));
    }
    assert_eq!(stdout(&tell(&["--stop", "Once upon a time, there was nobody"]).unwrap()), whole);
    // It is looked for in the story, not in the prompt.
    let prompted = tell(&["-i", "A cat. A dog.", "--stop", "cat", "--stop", "."]).unwrap();
    assert!(stdout(&prompted).starts_with("A cat. A dog. ") && !stdout(&prompted)[13..].contains('.'));
    assert_eq!(json(&tell(&["--stop", ".", "--json"]).unwrap())["ended_by"], "stop");
}

#[test]
fn json_of_a_story() {
    let Some(plain) = tell(&["-i", "One day"]) else { return };
    let report = json(&tell(&["-i", "One day", "--json"]).unwrap());
    assert_eq!(format!("{}\n", report["text"].as_str().unwrap()), stdout(&plain));
    assert_eq!(
        (&report["seed"], &report["prompt_tokens"], &report["ended_by"]),
        (&5.into(), &3.into(), &"steps".into())
    );
    assert_eq!(report["tokens"].as_array().unwrap().len(), 101, "BOS, and a token of each position");
    assert!(report["tokens_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let Some(want) = tell(&["-i", "One day\n\nTim"]) else { return };
    let (want, folder) = (stdout(&want), scratch("prompts_from_files"));
    let file = folder.join("prompt.txt");
    let name = file.to_str().unwrap();
    for text in ["One day\n\nTim", "One day\n\nTim\n", "\u{feff}One day\r\n\r\nTim\r\n", "One day\r\rTim\r"] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(stdout(&tell(&["-f", name]).unwrap()), want, "{text:?}");
        let (model, tok) = stories().unwrap();
        let fixed = [model.as_str(), "-z", &tok, "-s", "5", "-n", "100"];
        for flags in [["-i", "-"], ["-f", "-"]] {
            assert_eq!(stdout(&run_with_input(&[&fixed[..], &flags].concat(), text.as_bytes())), want, "{text:?}");
        }
    }
    std::fs::write(&file, b"a\xff").unwrap();
    assert_fails(&run(&["-f", name]), 1, &["prompt.txt", "not valid UTF-8 from byte 1"]);
    assert_fails(&run(&["-f", name, "-i", "x"]), 2, &["--file", "--prompt"]);
    assert_fails(&run(&["-f", "nowhere.txt"]), 1, &["nowhere.txt"]);
    assert_fails(&run(&["-f", folder.to_str().unwrap()]), 1, &["a folder"]);
    assert_fails(&run(&["-f", "/dev/zero"]), 1, &["/dev/zero", "a device"]);
    assert_fails(&run_with_input(&["-i", "-"], &[b'a'; (1 << 24) + 1]), 1, &["standard input is larger"]);
}

#[test]
fn quiet_is_quiet() {
    let (folder, model) = random_model("quiet", |_| {});
    std::fs::write(folder.join("text.txt"), "a b a b").unwrap();
    let out = run(&[&model, "-q", "-n", "5"]);
    assert!(out.status.success() && out.stderr.is_empty(), "{}", stderr(&out));
    let perplexity =
        ["perplexity", &model, folder.join("text.txt").to_str().unwrap(), "--window", "2"].map(String::from);
    let perplexity: Vec<&str> = perplexity.iter().map(String::as_str).collect();
    assert!(run(&[&perplexity[..], &["--quiet"]].concat()).stderr.is_empty());
    assert_fails(&run(&["nowhere.bin", "-q"]), 1, &["nowhere.bin"]);
}

#[test]
fn what_is_close_to_a_command_is_suggested() {
    for (args, meant) in [
        (&["chat"][..], "infer-cli -m chat?"),
        (&["chat", "model.bin"], "infer-cli -m chat?"),
        (&["-t", "0.5", "chat"], "infer-cli -m chat?"),
        (&["insepct"], "infer-cli inspect?"),
        (&["insepct", "model.bin"], "infer-cli inspect?"),
        (&["perplexety", "--windows", "3", "a", "b"], "infer-cli perplexity?"),
        (&["-q", "inspect"], "before all flags: infer-cli inspect"),
        (&["-z", "x", "perplexity", "text"], "before all flags: infer-cli perplexity"),
    ] {
        assert_fails(&run(args), 2, &[meant]);
    }
    assert_fails(&run(&["story"]), 1, &["model story"]);
    assert_fails(&run(&["perplexity"]), 2, &["TEXT"]);
    // A file of such a name is a model.
    let (folder, model) = random_model("suggestions", |_| {});
    std::fs::copy(model, folder.join("chat")).unwrap();
    assert!(run_in(&folder, &["chat", "-n", "5"]).status.success());
}

#[test]
fn stories_have_flags_that_a_chat_has_not() {
    assert_fails(&run(&["-m", "chat", "--stop", "x"]), 2, &["--stop"]);
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let names = ["inspect", "quantize", "perplexity", "compare", "bench", "tokenize", "serial", "completions", "man"];
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        for name in names.iter().chain(&["repeat-penalty"]) {
            assert!(stdout(&output).contains(name), "{shell}: {name}");
        }
    }
    assert_fails(&run(&["completions", "tcsh"]), 2, &["tcsh", "bash"]);
    let folder = scratch("man");
    stdout(&run(&["man", folder.join("man1").to_str().unwrap()]));
    for name in names {
        assert!(folder.join(format!("man1/infer-cli-{name}.1")).exists(), "{name}");
    }
    let page = std::fs::read_to_string(folder.join("man1/infer-cli.1")).unwrap();
    assert!(page.contains(r"\-\-repeat\-penalty"), "{page}");
    std::fs::write(folder.join("file"), "").unwrap();
    assert_fails(&run(&["man", folder.join("file").to_str().unwrap()]), 1, &["folder", "file"]);
}
