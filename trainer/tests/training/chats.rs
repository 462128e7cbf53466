//! Models learn chats, whole or by adapters.

use std::collections::HashSet;
use std::fs;

use infer_text::{Message, Template, TextTokenizer};
use trainer::io::files::open_model;
use trainer::io::inference::answer;

use crate::Scene;

const THINGS: [&str; 8] = ["ball", "kite", "hat", "boat", "drum", "bell", "book", "doll"];
const COLORS: [&str; 8] = ["red", "blue", "green", "white", "black", "pink", "brown", "grey"];
/// What may stand in front of a question.
const OPENINGS: [&str; 9] = ["", "Say, ", "Please, ", "Tell me, ", "Hello, ", "So, ", "Well, ", "Now, ", "And "];

/// Settings of a model that learns the colors in a few seconds.
const SETTINGS: &str = "
    dim = 32\nn_layers = 2\nn_heads = 4\nn_kv_heads = 2\nvocab_size = 320\nmax_seq_len = 96\nbatch_size = 4
    learning_rate = 1e-2\nmax_iters = 200\neval_interval = 50\neval_iters = 2\nlog_interval = 50\nwarmup_iters = 10
    peak_gflops = 100\n";

/// Every question about every thing, and the answers: the colors are turned by `turn`.
fn chats(turn: usize) -> Vec<(String, String)> {
    let pair = |opening: &str, i: usize| {
        let color = COLORS[(i + turn) % COLORS.len()];
        (format!("{opening}what color is the {}?", THINGS[i]), format!("It is {color}."))
    };
    OPENINGS.iter().flat_map(|opening| (0..THINGS.len()).map(|i| pair(opening, i))).collect()
}

impl Scene {
    /// Writes the settings, and chats of which every fifth is left out. Returns the latter.
    fn chats(&self, name: &str, turn: usize) -> Vec<(String, String)> {
        fs::write(self.path("chats.toml"), SETTINGS).unwrap();
        let (held_out, learned): (Vec<_>, Vec<_>) = chats(turn).into_iter().enumerate().partition(|(i, _)| i % 5 == 2);
        let lines = |chats: &[(usize, (String, String))]| {
            let line = |(_, (prompt, response)): &(usize, (String, String))| {
                serde_json::json!({ "prompt": prompt, "response": response }).to_string() + "\n"
            };
            chats.iter().map(line).collect::<String>()
        };
        fs::write(self.path(name), lines(&learned)).unwrap();
        fs::write(self.path("valid.jsonl"), lines(&held_out)).unwrap();
        held_out.into_iter().map(|(_, chat)| chat).collect()
    }

    /// The number of right answers, each ended by the model.
    fn right(&self, model: &str, chats: &[(String, String)]) -> usize {
        let path = self.path(model);
        let file = open_model(&path).unwrap();
        let model = file.model().unwrap();
        let tokenizer = TextTokenizer::beside(&path, &model.header()).unwrap();
        let template = Template::named("llama2").unwrap();
        let stops = template.stops(&tokenizer).unwrap();
        let is_right = |(question, expected): &&(String, String)| {
            let prompt = template.render(&tokenizer, &[Message::new("user", question.as_str())], true).unwrap().tokens;
            let answer = answer(model, &prompt, &stops, model.config().seq_len).unwrap();
            let text: Vec<u8> =
                answer.tokens.iter().flat_map(|token| tokenizer.decode(0, *token).into_owned()).collect();
            answer.stopped && String::from_utf8_lossy(&text).trim() == expected
        };
        chats.iter().filter(is_right).count()
    }
}

const TEACH: [&str; 4] = ["--config", "chats.toml", "--chats-valid", "valid.jsonl"];

#[test]
fn a_model_learns_to_answer_and_to_stop() {
    let scene = Scene::new();
    let held_out = scene.chats("chats.jsonl", 0);
    let log = scene.succeeds(&[&TEACH[..], &["--chats", "chats.jsonl", "--out-dir", "taught"]].concat());
    assert!(log.contains("chats: 58 to train on") && log.contains("validation on valid.jsonl: 14"), "{log}");
    assert!(log.contains("a chat: "), "{log}");
    assert_eq!(scene.right("taught/model.bin", &held_out), held_out.len(), "{log}");

    // Adapters learn other colors, and the weights under them stay.
    let held_out = scene.chats("turned.jsonl", 3);
    assert_eq!(scene.right("taught/model.bin", &held_out), 0);
    let adapt =
        ["--chats", "turned.jsonl", "--init-from", "taught/model.bin", "--lora-rank", "8", "--out-dir", "adapted"];
    let log = scene.succeeds(&[&TEACH[..], &adapt, &["--max-iters", "300"]].concat());
    assert!(log.contains("adapters of rank 8: "), "{log}");
    let right = scene.right("adapted/model.bin", &held_out);
    assert!(10 * right >= 9 * held_out.len(), "{right} of {}: {log}", held_out.len());
    let (before, after) = (fs::read(scene.path("taught/model.bin")), fs::read(scene.path("adapted/model.bin")));
    let (before, after) = (before.unwrap(), after.unwrap());
    assert!(before.len() == after.len() && before != after);
    // The embedding stays, but for the row of EOS.
    let (start, row) = (28, 4 * 32);
    assert!(before[..start + 2 * row] == after[..start + 2 * row]);
    assert!(before[start + 2 * row..start + 3 * row] != after[start + 2 * row..start + 3 * row]);
    assert!(before[start + 3 * row..start + 320 * row] == after[start + 3 * row..start + 320 * row]);
    scene.succeeds(&["export", "adapted", "again.bin"]);
    assert_eq!(fs::read(scene.path("again.bin")).unwrap(), after);
}

/// Steps, a stop and more steps give what all steps at once give, with and without adapters.
#[test]
fn lessons_go_on_bit_for_bit() {
    let scene = Scene::new();
    scene.chats("chats.jsonl", 0);
    let chats = ["--chats", "chats.jsonl", "--eval-interval", "5", "--gradient-accumulation-steps", "2"];
    let run = |out: &str, more: &[&str]| scene.succeeds(&[&TEACH[..], &chats, &["--out-dir", out], more].concat());
    run("base", &["--max-iters", "5"]);
    let file = |out: &str, name: &str| fs::read(scene.path(out).join("checkpoints").join(name)).unwrap();
    for (name, adapters) in [("whole", &[][..]), ("lora", &["--lora-rank", "3", "--dropout", "0.1"])] {
        let flags =
            |iters| [adapters, &["--init-from", "base/model.bin", "--decay-lr=false", "--max-iters", iters]].concat();
        let (parts, all) = (format!("{name}-parts"), format!("{name}-all"));
        run(&parts, &flags("10"));
        run(&all, &flags("20"));
        let settings = format!("{parts}/settings.toml");
        scene.succeeds(&["--config", &settings, "--max-iters", "20"]);
        for step in ["step-00000020/tensors.safetensors", "step-00000020/tokenizer.bin"] {
            assert!(file(&parts, step) == file(&all, step), "{name}: {step}");
        }
    }
    let names: HashSet<String> = scene.checkpoints("lora-parts").into_iter().collect();
    assert!(names.contains("base.safetensors"), "{names:?}");
    assert!(file("lora-all", "step-00000020/tensors.safetensors").len() < file("lora-all", "base.safetensors").len());
    let error = scene.fails(&["--config", "lora-parts/settings.toml", "--lora-rank", "4", "--max-iters", "30"]);
    assert!(error.contains("has adapters with lora_rank 3 and lora_alpha 6, but the settings ask for"), "{error}");
    scene.flip_bit("lora-parts/checkpoints/base.safetensors");
    let error = scene.fails(&["--config", "lora-parts/settings.toml", "--max-iters", "30"]);
    assert!(error.contains("base.safetensors is damaged"), "{error}");
    let error = scene.fails(&["eval", "whole-all"]);
    assert!(error.contains("was taught on chats") && error.contains("--eval-only"), "{error}");
    scene.succeeds(&["--config", "whole-all/settings.toml", "--eval-only"]);
}

#[test]
fn lessons_that_cannot_be_are_refused_in_words() {
    let scene = Scene::new();
    scene.chats("chats.jsonl", 0);
    fs::write(scene.path("bad.jsonl"), "{\"prompt\": \"1?\", \"response\": \"one\"}\n{\"prompt\": 2}\n").unwrap();
    for (flags, part) in [
        (&["--chats", "bad.jsonl"][..], "chats bad.jsonl, line 2: "),
        (&["--chats", "none.jsonl"], "chats none.jsonl"),
        (&["--chats", "chats.jsonl", "--max-seq-len", "4"], "give a larger --max-seq-len"),
        (&["--chats", "chats.jsonl", "--template", "chatml"], "<|im_start|>"),
        (&["--chats", "chats.jsonl", "--template", "vicuna"], "no chat template \"vicuna\""),
    ] {
        let error = scene.fails(&[&["--config", "chats.toml", "--out-dir", "bad"], flags].concat());
        assert!(error.contains(part), "{flags:?}: {error}");
    }
    for (flags, part) in [
        (&["--chats", "chats.jsonl", "--data", "stories.txt"][..], "data is for stories"),
        (&["--chats", "chats.jsonl", "--teacher", "model.bin"], "teacher is for stories"),
        (&["--template", "llama2"], "template is for chats"),
        (&["--lora-alpha", "2"], "lora_alpha is for adapters"),
        (&["--lora-rank", "0"], "lora_rank is 0: it must be at least 1"),
        (&["--lora-rank", "2"], "name a model with init_from"),
        (&["--lora-rank", "2", "--lora-alpha", "nan", "--init-from", "model.bin"], "lora_alpha is NaN"),
    ] {
        let error = scene.fails_with(2, &[&["--out-dir", "bad"], flags].concat());
        assert!(error.contains(part), "{flags:?}: {error}");
    }
}
