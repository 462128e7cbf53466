//! The stories and chats of llama2.c on the project's own model, byte for byte: tests/golden, which needs no `shared/`.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    model: String,
    t: f32,
    p: f32,
    s: u64,
    n: usize,
    i: Option<String>, // the prompt
    y: Option<String>, // the system prompt of a chat
    #[serde(default)]
    stdin: String,
    stdout: String,
}

impl Case {
    fn args(&self) -> Vec<String> {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/firmware");
        let mut args = vec![format!("{models}/{}", self.model)];
        for (flag, value) in [("-t", self.t.to_string()), ("-p", self.p.to_string()), ("-s", self.s.to_string())] {
            args.extend([flag.into(), value]);
        }
        args.extend(["-n".into(), self.n.to_string()]);
        args.extend(self.i.iter().flat_map(|prompt| ["-i".into(), prompt.clone()]));
        args.extend(self.y.iter().flat_map(|system| ["-m", "chat", "-y", system].map(String::from)));
        args
    }
}

#[test]
fn the_project_s_model_tells_what_llama2c_tells() {
    for (file, count) in [("stories_f32.jsonl", 20), ("chat_f32.jsonl", 3)] {
        let path = format!("{}/../tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let cases: Vec<Case> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(cases.len(), count, "{file}");
        for case in cases {
            let args = case.args();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            assert_eq!(stdout(&run_with_input(&args, case.stdin.as_bytes())), case.stdout, "{file}: {args:?}");
        }
    }
}
