//! Generated questions for a model to learn, and the answers to others counted: see "Teaching a
//! model to chat" in docs/TRAINING.md.
//!
//! ```text
//! questions write learn.jsonl ask.jsonl
//! trainer --init-from models/firmware/model.bin --chats learn.jsonl --out-dir taught …
//! questions ask taught/model.bin ask.jsonl
//! ```

use std::path::Path;

use anyhow::{Context, bail};
use infer_text::{Message, Template, TextTokenizer};
use trainer::data::chats::Chats;
use trainer::io::files::{folder_of, open_model};
use trainer::io::inference::answer;

/// Questions to learn, and others of the same kind to ask.
const LEARN: usize = 2000;
const ASK: usize = 200;

const NAMES: [&str; 10] = ["Lily", "Tom", "Mia", "Ben", "Anna", "Max", "Sue", "Tim", "Rosie", "Bruno"];
const PLACES: [&str; 8] =
    ["the park", "the forest", "the garden", "the beach", "the river", "the farm", "the hill", "the lake"];
/// Things and their colors, which are what is to be learned.
const THINGS: [(&str, &str); 12] = [
    ("ball", "red"),
    ("kite", "blue"),
    ("hat", "green"),
    ("boat", "white"),
    ("balloon", "yellow"),
    ("doll", "pink"),
    ("drum", "brown"),
    ("book", "black"),
    ("bell", "yellow"),
    ("basket", "brown"),
    ("blanket", "blue"),
    ("car", "red"),
];
const FORMS: [&str; 4] = [
    "{name} saw a {thing} at {place}. What color was it?",
    "What color is the {thing} that {name} has at {place}?",
    "Hello, I am {name} and I am at {place}. What color is the {thing}?",
    "{name} went to {place} with the {thing}. Tell me its color.",
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["write", learn, ask] => write(learn, ask),
        ["ask", model, questions] => count(Path::new(model), Path::new(questions)),
        _ => bail!("give `write LEARN.jsonl ASK.jsonl` or `ask MODEL.bin ASK.jsonl`"),
    }
}

/// Writes questions to learn and to ask, all of them different.
fn write(learn: &str, ask: &str) -> anyhow::Result<()> {
    let mut questions = Vec::new();
    for form in FORMS {
        for (name, place) in NAMES.iter().flat_map(|name| PLACES.iter().map(move |place| (name, place))) {
            for (thing, color) in THINGS {
                let prompt = form.replace("{name}", name).replace("{place}", place).replace("{thing}", thing);
                let response = format!("The {thing} is {color}.");
                questions.push(serde_json::json!({ "prompt": prompt, "response": response }).to_string() + "\n");
            }
        }
    }
    fastrand::Rng::with_seed(1).shuffle(&mut questions);
    std::fs::write(learn, questions[..LEARN].concat()).context("questions to learn")?;
    std::fs::write(ask, questions[LEARN..LEARN + ASK].concat()).context("questions to ask")
}

/// Asks questions, one chat each, and counts exact answers.
fn count(path: &Path, questions: &Path) -> anyhow::Result<()> {
    let file = open_model(path)?;
    let model = file.model()?;
    let header = model.header();
    let tokenizer = TextTokenizer::beside(path, &header)?;
    let template = Template::of(&header, folder_of(path))?.map_or_else(|| Template::named("llama2"), Ok)?;
    let stops = template.stops(&tokenizer)?;
    let chats = Chats::read(questions)?.chats;
    let (mut right, mut stopped) = (0, 0);
    for chat in &chats {
        let [question, Message { content: expected, .. }] = &chat.messages[..] else { bail!("not a single question") };
        let prompt = template.render(&tokenizer, std::slice::from_ref(question), true)?.tokens;
        let given = answer(model, &prompt, &stops, model.config().seq_len)?;
        let mut previous = prompt.last().copied().unwrap_or(0);
        let mut text = Vec::new();
        for token in given.tokens {
            text.extend_from_slice(&tokenizer.decode(previous, token));
            previous = token;
        }
        let text = String::from_utf8_lossy(&text);
        stopped += usize::from(given.stopped);
        if given.stopped && text.trim() == expected {
            right += 1;
        } else {
            println!("{} -> {}, not {expected}", question.content, text.trim());
        }
    }
    println!("{right} of {} answers are right; {stopped} end by themselves", chats.len());
    Ok(())
}
