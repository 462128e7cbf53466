//! Writes a small random model in f32 and in int8, and a tokenizer of printable pieces:
//! random_model DIRECTORY

use std::path::PathBuf;

use infer_core::format::Version;
use infer_core::{Config, WeightType};
use tests::random::RandomModel;
use tests::tokenizer;

fn main() -> std::io::Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).expect("usage: random_model DIRECTORY"));
    std::fs::create_dir_all(&directory)?;
    let f32_config = Config::new(64, 192, 2, 4, 300, 64).with_kv_heads(2);
    let int8_config = f32_config.with_weights(WeightType::Q8 { group_size: 64 });
    for (name, version, config) in [("f32.bin", Version::V0, f32_config), ("int8.bin", Version::V2, int8_config)] {
        std::fs::write(directory.join(name), RandomModel::new(config, 1).to_file(version).bytes())?;
    }
    std::fs::write(directory.join("tokenizer.bin"), vocabulary(f32_config.vocab_size))
}

/// A vocabulary of control tokens, letters, letters after a space, and pairs of letters. It has no
/// byte tokens, so that the model's text can be printed.
fn vocabulary(vocab_size: usize) -> Vec<u8> {
    let letters = || (b'a'..=b'z').map(char::from);
    let control = ["<unk>", "\n<s>\n", "\n</s>\n", " "].map(String::from);
    let pairs = letters().flat_map(|a| letters().map(move |b| format!("{a}{b}")));
    let pieces =
        control.into_iter().chain(letters().map(String::from)).chain(letters().map(|a| format!(" {a}"))).chain(pairs);
    tokenizer::file(6, pieces.take(vocab_size))
}
