//! Chat with piped input: turns, commands, and a context that is full.

use super::*;

/// A model that answers every message with the same tokens, and then the token `end`. Layers add
/// nothing, so that a token decides the next one. Without an end the answer begins again.
pub fn fixed_model(seq_len: usize, ids: &[usize], end: Option<usize>) -> RandomModel {
    use infer_core::format::TensorName::*;
    let dim = (ids.len() + 1).next_multiple_of(8);
    let shape = Config::new(dim, 5, 1, 4, 300, seq_len).with_kv_heads(2).with_own_classifier();
    let mut model = RandomModel::new(shape, 3);
    for tensor in [Wo, W2, TokEmb, Wcls] {
        model.tensor_mut(tensor).fill(0.0);
    }
    // Token i of the answer has dimension i + 1, and everything else dimension 0.
    for token in 0..300 {
        let dimension = ids.iter().position(|&id| id == token).map_or(0, |i| i + 1);
        model.tensor_mut(TokEmb)[token * dim + dimension] = 1.0;
    }
    for (i, id) in ids.iter().enumerate() {
        model.tensor_mut(Wcls)[id * dim + i] = 9.0;
    }
    model.tensor_mut(Wcls)[end.unwrap_or(ids[0]) * dim + ids.len()] = 9.0;
    model
}

/// [`fixed_model`] with the answer "acdef…" of so many letters.
pub fn fixed_answers(test: &str, seq_len: usize, letters: usize, end: Option<usize>) -> (PathBuf, String) {
    let ids: Vec<usize> = std::iter::once(260).chain(263..).take(letters).collect();
    let model = fixed_model(seq_len, &ids, end);
    let pieces: Vec<String> = ('c'..='z').map(String::from).collect();
    let mut all = vec![" ", "a", "b", " a"];
    all.extend(pieces.iter().map(String::as_str));
    let folder = scratch(test);
    let path = folder.join("model.bin");
    std::fs::write(&path, model.to_file(Version::V1).bytes()).unwrap();
    std::fs::write(folder.join("tokenizer.bin"), tokenizer_file(&all, 300)).unwrap();
    (folder, path.display().to_string())
}

/// A model whose answers depend on everything before.
fn thoughtful(test: &str, seq_len: usize) -> (PathBuf, String) {
    random_model(test, |model| *model = RandomModel::new(Config::new(32, 24, 2, 4, 300, seq_len).with_kv_heads(2), 5))
}

/// Runs a chat. Returns its standard output and standard error.
fn chat(model: &str, flags: &[&str], input: &str) -> (String, String) {
    let output = run_with_input(&[&[model, "-m", "chat", "-t", "0"], flags].concat(), input.as_bytes());
    (stdout(&output).to_owned(), String::from_utf8(output.stderr).unwrap())
}

/// The answers of a chat that ends with its input.
fn answers(stdout: &str) -> Vec<&str> {
    let turns = stdout.strip_suffix("User: \n").unwrap_or_else(|| panic!("{stdout:?}"));
    turns.split("User: ").skip(1).filter_map(|turn| turn.strip_prefix("Assistant: ")).collect()
}

#[test]
fn turns_are_taken_until_the_input_ends() {
    let (_, model) = random_model("chat", |_| {});
    assert_eq!(chat(&model, &["-y", ""], "").0, "User: \n");
    assert_eq!(chat(&model, &[], "").0, "Enter system prompt (optional): User: \n");
    assert_fails(&run_with_input(&[&model, "-m", "chat"], b"\xff\n"), 2, &["not valid UTF-8"]);
}

#[test]
fn answers_end_with_eos() {
    let (_, model) = fixed_answers("chat_eos", 80, 1, Some(2));
    let (out, errors) = chat(&model, &["-y", ""], "a\nb\n");
    assert_eq!(out, "User: Assistant: a\nUser: Assistant: a\nUser: \n");
    assert_eq!(errors.matches("achieved tok/s: ").count(), 2, "{errors}");
    assert!(!errors.contains("dropped"), "{errors}");
}

/// BOS begins another story. llama2.c, which a chat with -n follows, goes on with it.
#[test]
fn answers_end_before_another_story() {
    let (_, model) = fixed_answers("chat_bos", 80, 1, Some(1));
    let (out, errors) = chat(&model, &["-y", ""], "a\nb\n");
    assert_eq!(answers(&out), ["a\n"; 2]);
    assert!(!errors.contains("dropped"), "{errors}");
    assert!(chat(&model, &["-y", "", "-n", "60"], "a\n").0.starts_with("User: Assistant: a\n<s>\na\n<s>\na"));
}

#[test]
fn the_oldest_turns_leave_a_full_context() {
    let (_, model) = fixed_answers("chat_full", 80, 1, Some(2));
    // A turn takes 20 positions: BOS, the message in its brackets, "a" and EOS. The fifth does not
    // fit any more: it and the one before are half of the context.
    let (out, errors) = chat(&model, &["-y", ""], "b\nb\nb\nb\nb\n");
    assert_eq!(answers(&out), ["a\n"; 5]);
    assert!(errors.contains("80 positions is full: 3 oldest turns dropped, 2 kept\n"), "{errors}");
    // A system prompt is kept, and takes room.
    let (out, errors) = chat(&model, &["-y", "bbb"], "b\nb\nb\n");
    assert_eq!(answers(&out), ["a\n"; 3]);
    assert!(errors.contains("full: 2 oldest turns dropped, 1 kept, and the system prompt\n"), "{errors}");
}

#[test]
fn what_is_kept_is_read_again() {
    let (_, model) = thoughtful("chat_again", 100);
    // The second message takes more than half of the context: it stands alone, as in a new chat.
    let long = "ab ".repeat(14);
    for system in ["", "a b"] {
        let (fresh, _) = chat(&model, &["-y", system], &format!("{long}\n"));
        let (out, errors) = chat(&model, &["-y", system], &format!("bbb\n{long}\n"));
        assert!(errors.contains("1 oldest turn dropped, 1 kept"), "{errors}");
        assert_eq!(answers(&out)[1], answers(&fresh)[0], "with the system prompt {system:?}");
        assert_ne!(answers(&out)[1], answers(&chat(&model, &["-y", "b"], &format!("{long}\n")).0)[0]);
    }
}

#[test]
fn an_answer_goes_on_when_old_turns_make_room() {
    let (_, model) = fixed_answers("chat_answer_goes_on", 80, 24, Some(2));
    let (out, errors) = chat(&model, &["-y", ""], "b\nb\nb\n");
    assert_eq!(answers(&out), ["acdefghijklmnopqrstuvwxy\n"; 3]);
    assert_eq!(errors.matches("1 oldest turn dropped, 1 kept\n").count(), 2, "{errors}");
    assert!(!errors.contains("cut"), "{errors}");
}

#[test]
fn an_answer_that_fills_the_context_is_cut_and_the_chat_goes_on() {
    let (_, model) = fixed_answers("chat_cut", 40, 24, None);
    let (out, errors) = chat(&model, &["-y", ""], "b\nb\n");
    assert_eq!(answers(&out), ["acdefghijklmnopqrstuvwx\n"; 2], "18 positions of the message, 22 read, one not");
    assert_eq!(errors.matches("the answer is cut").count(), 2, "{errors}");
    assert!(errors.contains("1 oldest turn dropped, 1 kept\n"), "{errors}");
}

#[test]
fn piped_input_with_n_ends_there() {
    let (_, model) = fixed_answers("chat_n", 80, 24, None);
    let (out, errors) = chat(&model, &["-y", "", "-n", "30"], "b\nb\n");
    assert_eq!(out, "User: Assistant: acdefghijklmn\n");
    assert!(errors.ends_with("the chat ends: its 30 positions (-n) are used\n"), "{errors}");
    let (out, errors) = chat(&model, &["-y", "", "-n", "0"], "b\nb\n");
    assert_eq!(answers(&out).len(), 2);
    assert!(errors.contains("80 positions"), "{errors}");
}

#[test]
fn messages_that_never_fit_are_refused_and_the_chat_goes_on() {
    let (_, model) = fixed_answers("chat_too_long", 80, 1, Some(2));
    let input = format!("b\n{}\nb\n", "b".repeat(64));
    let output = run_with_input(&[&model, "-m", "chat", "-y", "", "-t", "0"], input.as_bytes());
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "User: Assistant: a\nUser: User: Assistant: a\nUser: \n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("error: the message has 81 tokens, and the context 80 positions: shorten it\n"),
        "{errors}"
    );
    assert!(errors.ends_with("error: lines refused: 1\n"), "{errors}");
    // One more fits.
    assert_eq!(answers(&chat(&model, &["-y", ""], &format!("{}\n", "b".repeat(63))).0), ["a\n"]);

    // Bytes that are not text are refused alike. What can be known before the chat is an error of
    // the command line.
    let output = run_with_input(&[&model, "-m", "chat", "-y", "", "-t", "0"], b"b\xff\x1b[2J\nb\n");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "User: User: Assistant: a\nUser: \n");
    assert!(
        String::from_utf8_lossy(&output.stderr).starts_with("error: the input \"b\u{fffd}[2J\" is not valid UTF-8\n")
    );
    let output =
        run_with_input(&[&model, "-m", "chat", "-y", "", "-t", "0"], &[&[b'b'; 20 << 20][..], b"\nb\n"].concat());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "User: User: Assistant: a\nUser: \n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("bbb…\" has more than 16777216 bytes\n"));
    let long = "b".repeat(80);
    assert_fails(
        &run(&[&model, "-m", "chat", "-y", "", "-n", "9"]),
        2,
        &["an empty message has 17 tokens", "raise -n"],
    );
    assert_fails(&run(&[&model, "-m", "chat", "-y", "", "-i", &long]), 2, &["message has", "80 positions"]);
    assert_fails(&run(&[&model, "-m", "chat", "-y", &long]), 2, &["system prompt has", "80 positions"]);
    assert_fails(&run(&[&model, "-m", "chat", "-y", &long, "-n", "50"]), 2, &["raise -n (the model has 80)"]);
}

#[test]
fn reset_and_system_begin_anew_or_go_on() {
    let (_, model) = thoughtful("chat_commands", 400);
    let (fresh, _) = chat(&model, &["-y", "", "-n", "80"], "ab\n");
    let fresh = fresh.strip_prefix("User: Assistant: ").unwrap();
    let limited = |input: &str| chat(&model, &["-y", ""], input);

    let (out, errors) = limited("ab\n/reset\nab\n");
    let told = answers(&out);
    assert!(told.len() == 2 && told[0] == told[1] && told[0].starts_with(fresh.trim_end()), "{told:?}");
    assert!(errors.contains("the conversation begins anew"), "{errors}");

    let (with_system, _) = chat(&model, &["-y", "a b"], "ab\n");
    assert_ne!(answers(&with_system)[0], told[0]);
    let (out, errors) = limited("/system  a b \nab\n/reset\nab\n/system\n/reset\nab\n");
    assert_eq!(answers(&out), [answers(&with_system)[0], answers(&with_system)[0], told[0]]);
    assert!(errors.contains("system prompt is removed; it was: a b"), "{errors}");
}

#[test]
fn a_system_prompt_can_change_within_a_conversation() {
    let (_, model) = fixed_answers("chat_system", 80, 1, Some(2));
    let long = "b".repeat(80);
    let output = run_with_input(
        &[&model, "-m", "chat", "-y", "bbb", "-t", "0"],
        format!("b\n/system {long}\n/system\nb\n").as_bytes(),
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("error: the system prompt has 116 tokens, and the context 80 positions: shorten it"),
        "{errors}"
    );
    assert!(errors.contains("removed; it was: bbb"), "{errors}");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("User: Assistant: a\nUser: \n"));
}

#[test]
fn unknown_commands_are_not_sent() {
    let (_, model) = thoughtful("chat_unknown", 400);
    for line in ["/foo", "/", "/reset now", "/save", "/etc/passwd is a file"] {
        let output = run_with_input(&[&model, "-m", "chat", "-y", ""], format!("{line}\n").as_bytes());
        assert_fails(&output, 2, &[line, "no such command", "/help", "//text", "lines refused: 1"]);
        assert_eq!(output.stdout, b"User: User: \n", "{line}");
    }
    let (_, errors) = chat(&model, &["-y", ""], "/help\n");
    assert!(["/reset", "/system TEXT", "/save FILE", "//text", "Ctrl-D"].iter().all(|word| errors.contains(word)));
    // Two slashes send one; a message of the command line is sent as it is.
    let (sent, _) = chat(&model, &["-y", ""], "//a\n");
    let (flag, _) = chat(&model, &["-y", "", "-i", "/a"], "");
    assert_eq!(sent, format!("User: {flag}"));
}

#[test]
fn save_writes_the_conversation_and_replaces_nothing_else() {
    let (folder, model) = fixed_answers("chat_save", 80, 1, Some(2));
    let file = folder.join("my chat.txt");
    let save = format!("/save {}\n", file.display());
    // Dropped turns are written too.
    let (_, errors) = chat(&model, &["-y", "Be kind."], &format!("b\n{save}a\nb\nb\nb\n{save}"));
    assert_eq!(errors.matches("saved to ").count(), 2, "{errors}");
    assert!(errors.contains("dropped"), "{errors}");
    let turn = |user: &str| format!("User: {user}\nAssistant: a\n");
    let text = format!("System: Be kind.\n{}{}{}", turn("b"), turn("a"), turn("b").repeat(3));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    for (input, problem) in [
        (format!("b\n{save}"), "holds something else"),
        (save.clone(), "nothing has been said"),
        (format!("b\n/save {}\n", folder.display()), "not a regular file"),
        (format!("b\n/save {}/none/x\n", folder.display()), "none"),
    ] {
        let output = run_with_input(&[&model, "-m", "chat", "-y", "", "-t", "0"], input.as_bytes());
        assert_eq!(output.status.code(), Some(2));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("error: ") && errors.contains(problem), "{errors}");
        assert!(output.stdout.ends_with(b"User: \n"));
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "a temporary file stays behind");
}

#[test]
fn line_ends_of_windows_never_reach_the_model() {
    let (_, model) = thoughtful("chat_crlf", 400);
    let (lf, _) = chat(&model, &[], "a b\nab\n");
    assert_eq!(chat(&model, &[], "a b\r\nab\r\n").0, lf);
    assert_eq!(
        chat(&model, &["-y", ""], "a\rb\n").0,
        format!("User: {}", chat(&model, &["-y", "", "-i", "a\nb"], "").0)
    );
    assert_eq!(chat(&model, &["-y", "", "-i", "a\r\nb"], "").0, chat(&model, &["-y", "", "-i", "a\nb"], "").0);
    assert_eq!(chat(&model, &["-y", "a\r\nb"], "a\n").0, chat(&model, &["-y", "a\nb"], "a\n").0);
}
