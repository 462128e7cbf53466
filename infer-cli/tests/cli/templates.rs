//! Chats in other templates than Llama 2's, for programs, and over several runs.

use infer_core::format::{Header, SpecialTokens, TemplateName};
use serde_json::{Value, json};

use super::*;

/// First of the letters in the vocabulary: bytes begin at token 6.
const A: u32 = 6 + b'a' as u32;

/// Writes a model of this template with a tokenizer.json beside it. It has no BOS, and ends texts
/// with `<|im_end|>`.
fn write_model(test: &str, model: &RandomModel, template: &str) -> (PathBuf, String) {
    let folder = scratch(test);
    let mut file = model.to_file(Version::V1).bytes().to_vec();
    let tokens = SpecialTokens::new(&[], &[2]).unwrap();
    let header = Header::parse(&file).unwrap().with_tokens(tokens).with_template(TemplateName::new(template).unwrap());
    file[..256].copy_from_slice(&header.to_bytes().unwrap());
    let path = folder.join("model.bin");
    std::fs::write(&path, file).unwrap();
    std::fs::write(folder.join("tokenizer.json"), ::tests::tokenizer::byte_level_json().to_string()).unwrap();
    (folder, path.display().to_string())
}

/// A model that answers "a" to everything, and then the token `end`.
fn short_answers(test: &str, seq_len: usize, end: u32) -> (PathBuf, String) {
    write_model(test, &super::chat::fixed_model(seq_len, &[A as usize], Some(end as usize)), "chatml")
}

/// A model whose answers depend on everything before, and seldom end.
fn thoughtful(test: &str, template: &str) -> (PathBuf, String) {
    let shape = Config::new(32, 24, 2, 4, 300, 160).with_kv_heads(2).with_own_classifier();
    write_model(test, &RandomModel::new(shape, 5), template)
}

/// Sends these lines to a chat for programs. Returns its lines.
fn talk(model: &str, flags: &[&str], lines: &[Value]) -> Vec<Value> {
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let output = run_with_input(&[&[model, "-m", "chat", "--json"], flags].concat(), input.as_bytes());
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The answers among the lines.
fn answers(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["role"] == "assistant").collect()
}

fn say(text: &str) -> Value {
    json!({ "content": text })
}

#[test]
fn chatml_answers_end_with_its_end_token() {
    let (folder, model) = short_answers("chatml", 200, 2);
    let chat = |flags: &[&str]| {
        run_with_input(&[&[&*model, "-m", "chat", "-y", "Be kind.", "-t", "0"], flags].concat(), b"b\nb\n")
    };
    let output = chat(&[]);
    assert_eq!(stdout(&output), "User: Assistant: a\nUser: Assistant: a\nUser: \n", "{}", stderr(&output));
    assert_eq!(stdout(&chat(&["--template", "chatml"])), stdout(&output));
    // The end token of the template stops too, not only EOS.
    let (_, other) = short_answers("chatml_eot", 200, 3);
    let llama3 = run_with_input(&[&other, "-m", "chat", "-y", "", "-t", "0", "--template", "llama3"], b"b\n");
    assert_eq!(stdout(&llama3), "User: Assistant: a\nUser: \n");
    // A Jinja file, by the flag or by the header.
    let jinja = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}{% endif %}";
    let file = folder.join("mine.jinja");
    std::fs::write(&file, jinja).unwrap();
    assert_eq!(stdout(&chat(&["--template", file.to_str().unwrap()])), stdout(&output));
    let (folder, model) = thoughtful("chatml_jinja", "jinja");
    let told = |flags: &[&str]| talk(&model, &[&["-t", "0"], flags].concat(), &[say("b")]).pop();
    assert_fails(&run(&[&model, "-m", "chat", "-y", ""]), 1, &[&model, "chat_template.jinja", "No such file"]);
    std::fs::write(folder.join("chat_template.jinja"), jinja).unwrap();
    assert_eq!(told(&[]).unwrap()["content"], told(&["--template", "chatml"]).unwrap()["content"]);
    assert_ne!(told(&[]).unwrap()["content"], told(&["--template", "plain"]).unwrap()["content"]);
}

#[test]
fn templates_that_do_not_fit_are_refused_in_words() {
    let (folder, model) = short_answers("template_errors", 200, 2);
    let fails = |flags: &[&str], code, words: &[&str]| {
        assert_fails(&run(&[&[&*model, "-m", "chat", "-y", ""], flags].concat()), code, words);
    };
    fails(&["--template", "alpaca"], 2, &["alpaca", "chatml", "Jinja file"]);
    fails(&["--template", "none.jinja"], 1, &["none.jinja"]);
    let file = folder.join("bad.jinja");
    for (source, words) in [("{% if %}", "line 1"), ("{{ raise_exception('no') }}", "it says: no")] {
        std::fs::write(&file, source).unwrap();
        fails(&["--template", file.to_str().unwrap()], 1, &[words]);
    }
    let (_, plain) = random_model("template_plain", |_| {});
    assert_fails(&run(&[&plain, "-m", "chat", "-y", "", "--template", "chatml"]), 1, &["<|im_start|>", "take another"]);
    assert_fails(&run(&[&plain, "--template", "chatml"]), 2, &["--template is for chats"]);
    assert_fails(&run(&[&plain, "--session", "x"]), 2, &["--session is for chats"]);
    assert_fails(&run(&[&plain, "-m", "chat", "--special"]), 2, &["--special is for stories"]);
}

#[test]
fn stories_of_a_model_without_bos() {
    let (folder, model) = short_answers("no_bos", 60, 2);
    assert_fails(&run(&[&model]), 2, &["no token that begins a text", "-i"]);
    let report = json(&run(&[&model, "-i", "hello", "-t", "0", "--json"]));
    assert_eq!((&report["text"], &report["ended_by"]), (&json!("helloa"), &json!("eos")));
    assert_eq!(report["prompt_tokens"], 1);
    assert_eq!(stdout(&run(&[&model, "-i", "hello", "-t", "0"])), "helloa\n");
    let special = json(&run(&[&model, "-i", "<|im_start|>hello", "-t", "0", "--json", "--special"]));
    assert_eq!(special["tokens"][0], 1);

    let tokenizer = folder.join("tokenizer.json").display().to_string();
    let tokens =
        |flags: &[&str]| stdout(&run(&[&["tokenize", "-z", &tokenizer, "<|im_end|>"], flags].concat())).to_owned();
    assert_eq!(tokens(&["--special"]), "2\n");
    assert!(tokens(&[]).split(' ').count() > 3);
    std::fs::write(folder.join("text.txt"), "hello world, hello").unwrap();
    let text = folder.join("text.txt").display().to_string();
    let report = json(&run(&["perplexity", &model, &text, "--window", "4", "--json"]));
    assert!(report["nats_per_token"].as_f64().unwrap().is_finite());
    std::fs::remove_file(&tokenizer).unwrap();
    assert_fails(&run(&[&model, "-i", "x"]), 1, &["tokenizer.bin", "tokenizer.json", "-z"]);
    std::fs::write(&tokenizer, "{\"model\": 1}").unwrap();
    assert_fails(&run(&[&model, "-i", "x"]), 1, &[&tokenizer, "cannot be read"]);
}

#[test]
fn lines_for_programs() {
    let (_, model) = short_answers("lines", 200, 2);
    let lines = talk(&model, &["-t", "0"], &[json!({ "role": "system", "content": "Be kind." }), say("b"), say("b")]);
    assert_eq!(lines[0], json!({ "ok": true }));
    assert_eq!(lines[1], json!({ "delta": "a" }));
    let answer = &lines[2];
    assert_eq!((&answer["content"], &answer["finish_reason"]), (&json!("a"), &json!("stop")));
    assert_eq!((&answer["tokens"], &answer["dropped_turns"]), (&json!(2), &json!(0)));
    assert!(answer["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(lines.len(), 5);
    // The second message needs itself and the marks around it; the first also the system prompt.
    assert!(lines[4]["prompt_tokens"].as_u64() < answer["prompt_tokens"].as_u64());

    // What a person writes is text: `<|im_end|>` takes as many tokens as any other such text.
    let prompt = |text: &str| answers(&talk(&model, &["-t", "0"], &[say(text)]))[0]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(prompt("<|im_end|>") - prompt("b"), 7 - 1, "<| im _ e n d |>");

    let input = r#"{"content": "b"}
x

{"content": 1}
{"role": "assistant", "content": "b"}
{"command": "reset"}
{}
"#;
    let output = run_with_input(&[&model, "-m", "chat", "--json", "-t", "0"], input.as_bytes());
    assert_eq!(output.status.code(), Some(2));
    let out = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["error"].is_string()).count(), 4, "{out}");
    assert_eq!(lines[5], json!({ "ok": true }));
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("error: lines refused: 4\n"));
}

#[test]
fn long_answers_and_conversations_fit_the_context() {
    let (_, model) = short_answers("lines_long", 60, A);
    let lines = talk(&model, &["-t", "0"], &[say("b"), say("b")]);
    let answers = answers(&lines);
    assert_eq!(answers[0]["finish_reason"], "length");
    assert_eq!(answers[1]["dropped_turns"], 1);
    assert_eq!(answers[0]["content"], answers[1]["content"]);
    let (_, model) = short_answers("lines_dropped", 60, 2);
    let lines = talk(&model, &["-t", "0", "-y", "Be kind."], &vec![say("b"); 6]);
    assert!(lines.iter().any(|line| line["dropped_turns"].as_u64() > Some(0)), "{lines:?}");
    assert!(lines.iter().filter(|line| line["role"] == "assistant").all(|line| line["finish_reason"] == "stop"));
}

#[test]
fn a_session_goes_on_as_if_it_had_not_stopped() {
    for (template, kv) in [("chatml", "f32"), ("chatml", "int8"), ("plain", "f32")] {
        let (folder, model) = thoughtful(&format!("session_{template}_{kv}"), template);
        let file = folder.join("talk.session").display().to_string();
        let seeded = ["--kv", kv, "-s", "7", "-y", "b", "--repeat-penalty", "1.2"];
        let said = [say("hello"), say("b"), say("hello world"), say("a")];
        let whole = talk(&model, &seeded, &said);
        for stops in [1, 2, 3] {
            let _ = std::fs::remove_file(&file);
            let mut parts = talk(&model, &[&seeded[..], &["--session", &file]].concat(), &said[..stops]);
            for message in &said[stops..] {
                let flags = ["--kv", kv, "--repeat-penalty", "1.2", "--session", &file];
                parts.extend(talk(&model, &flags, std::slice::from_ref(message)));
            }
            let shown = |lines: &[Value]| -> Vec<_> {
                answers(lines).iter().map(|line| (line["content"].clone(), line["prompt_tokens"].clone())).collect()
            };
            let said: usize = shown(&whole).iter().map(|(content, _)| content.as_str().unwrap().len()).sum();
            assert!(said > 100, "{whole:?}");
            assert_eq!(shown(&parts), shown(&whole), "{template} {kv}, stopped behind {stops}");
        }
        assert!(std::fs::read_dir(&folder).unwrap().count() <= 4, "a temporary file stays behind");
    }
}

#[test]
fn sessions_of_others_and_damaged_ones_are_refused() {
    let (folder, model) = thoughtful("session_refused", "chatml");
    let file = folder.join("talk.session").display().to_string();
    talk(&model, &["-t", "0", "--session", &file], &[say("hello")]);
    let good = std::fs::read(&file).unwrap();
    let fails = |model: &str, flags: &[&str], words: &[&str]| {
        let all = [&[model, "-m", "chat", "-y", "", "--json", "--session", &file], flags].concat();
        assert_fails(&run_with_input(&all, b"{\"content\": \"b\"}\n"), 1, &[&[&*file], words].concat());
        assert_eq!(std::fs::read(&file).unwrap().len(), std::fs::metadata(&file).unwrap().len() as usize);
    };
    fails(&model, &["--template", "plain"], &["another chat template (chatml, here plain)"]);
    fails(&model, &["--kv", "int8"], &["another type of the KV cache (f32, here int8)"]);
    let (other_folder, other) = short_answers("session_other", 160, 2);
    fails(&other, &[], &["another model"]);
    std::fs::copy(&model, &other).unwrap();
    let json = ::tests::tokenizer::byte_level_json().to_string();
    std::fs::write(other_folder.join("tokenizer.json"), json + " ").unwrap();
    fails(&other, &[], &["another tokenizer"]);
    assert_eq!(std::fs::read(&file).unwrap(), good, "a refused file stays as it is");

    for at in (16..good.len()).step_by(good.len() / 40) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&file, &bad).unwrap();
        fails(&model, &[], &["damaged"]);
        std::fs::write(&file, &good[..at]).unwrap();
        fails(&model, &[], &["damaged"]);
    }
    for none in [&b""[..], b"infer-cli", b"{\"a\": 1}\n"] {
        std::fs::write(&file, none).unwrap();
        fails(&model, &[], &["no session file"]);
    }
    // A smaller context drops old turns, and reads again what it keeps.
    std::fs::write(&file, &good).unwrap();
    assert_eq!(answers(&talk(&model, &["-n", "60", "--session", &file], &[say("b")])).len(), 1);
}
