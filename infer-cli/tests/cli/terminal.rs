//! Chat in a terminal: editing, history, pastes, Ctrl-C and Ctrl-D.

use rexpect::session::PtySession;

use super::chat::fixed_answers;
use super::*;

/// Milliseconds to wait for output that should come: far more than it takes.
const PATIENCE: Option<u64> = Some(60_000);

/// A chat in a terminal of its own. When it has ended, the shell prints the terminal's settings.
fn chat(model: &str) -> PtySession {
    let mut command = Command::new("sh");
    command.args(["-c", "trap : INT; \"$0\" \"$@\"; echo status $?; stty -a", env!("CARGO_BIN_EXE_infer-cli")]);
    command.args([model, "-m", "chat", "-y", "", "-t", "0"]).env("TERM", "xterm");
    let mut chat = rexpect::session::spawn_command(command, PATIENCE).unwrap();
    expect(&mut chat, &["\x1b[?2004h", "User: "]); // asks the terminal to mark pastes
    chat
}

/// Waits for these texts, one after the other.
fn expect(chat: &mut PtySession, texts: &[&str]) {
    for text in texts {
        chat.exp_string(text).unwrap_or_else(|e| panic!("{text:?} does not come: {e}"));
    }
}

fn send(chat: &mut PtySession, keys: &str) {
    chat.send(keys).unwrap();
    chat.flush().unwrap();
}

/// Ctrl-D: the chat ends well, and leaves the terminal as it was.
fn end(mut chat: PtySession) {
    send(&mut chat, "\x04");
    expect(&mut chat, &["status 0"]);
    let settings = chat.exp_eof().unwrap();
    for setting in ["isig", "icanon", "icrnl"] {
        assert!(settings.split_whitespace().any(|word| word == setting), "{settings}");
    }
}

#[test]
fn lines_are_edited_and_remembered() {
    let (folder, model) = fixed_answers("terminal_editing", 200, 1, Some(2));
    let mut chat = chat(&model);
    // Left, a letter, the end of the line, Backspace.
    send(&mut chat, "ad\x1b[Dbc\x05x\x7f\r");
    expect(&mut chat, &["Assistant: a", "User: "]);
    send(&mut chat, "\r \r"); // Enter was pressed by mistake
    send(&mut chat, "\x1b[A!\r"); // up
    expect(&mut chat, &["Assistant: a", "User: "]);
    let file = folder.join("chat.txt");
    send(&mut chat, &format!("/save {}\r", file.display()));
    expect(&mut chat, &["saved to"]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "User: abcd\nAssistant: a\nUser: abcd!\nAssistant: a\n");
    end(chat);
}

#[test]
fn a_paste_of_many_lines_is_one_message() {
    let (folder, model) = fixed_answers("terminal_paste", 20_000, 1, Some(2));
    let mut chat = chat(&model);
    let lines: Vec<String> = (0..100).map(|i| format!("{i:2} {}", "é pasted line ".repeat(4))).collect();
    assert!(lines.concat().len() > 5000);
    send(&mut chat, &format!("\x1b[200~{}\x1b[201~", lines.join("\r\n") + "\n"));
    send(&mut chat, "\r");
    expect(&mut chat, &["Assistant: a", "tok/s", "User: "]);
    let file = folder.join("chat.txt");
    send(&mut chat, &format!("/save {}\r", file.display()));
    expect(&mut chat, &["saved to"]);
    let saved = std::fs::read_to_string(file).unwrap();
    assert_eq!(saved, format!("User: {}\nAssistant: a\n", lines.join("\n")));
    end(chat);
}

#[test]
fn what_is_typed_ahead_is_kept() {
    let (_, model) = fixed_answers("terminal_ahead", 200, 1, Some(2));
    let mut chat = chat(&model);
    send(&mut chat, "a\rb\rc\r");
    expect(&mut chat, &["Assistant: a", "Assistant: a", "Assistant: a", "User: "]);
    end(chat);
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_chat() {
    let (folder, model) = fixed_answers("terminal_ctrl_c", 100_000, 24, None);
    let mut chat = chat(&model);
    for _ in 0..2 {
        send(&mut chat, "b\r");
        expect(&mut chat, &["Assistant: acdef"]);
        send(&mut chat, "\x03");
        expect(&mut chat, &["the answer is stopped", "User: "]);
    }
    // At the prompt it clears the line.
    send(&mut chat, "not sent\x03");
    expect(&mut chat, &["(Ctrl-D ends the chat)", "User: "]);
    let file = folder.join("chat.txt");
    send(&mut chat, &format!("/save {}\r", file.display()));
    expect(&mut chat, &["saved to"]);
    let saved = std::fs::read_to_string(file).unwrap();
    assert!(saved.matches("User: b\nAssistant: acdef").count() == 2 && !saved.contains("not sent"), "{saved}");
    end(chat);
}

#[test]
fn ctrl_c_ends_a_story() {
    let (_, model) = fixed_answers("terminal_story", 100_000, 24, None);
    let mut command = cli();
    command.args([&model, "-n", "0", "-t", "0"]);
    let mut story = rexpect::session::spawn_command(command, PATIENCE).unwrap();
    expect(&mut story, &["acdef"]);
    send(&mut story, "\x03");
    story.exp_eof().unwrap();
    let status = story.process().wait().unwrap();
    assert!(matches!(status, rexpect::process::WaitStatus::Exited(_, 130)), "{status:?}");
}
