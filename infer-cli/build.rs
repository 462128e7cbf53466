//! Hands the default model to the program, which embeds it.
//!
//! The model is part of the package by symlinks, which `cargo package` follows. Moving it here
//! would take it from where people look for it, and a copy would be in the repository twice.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for name in ["model.bin", "tokenizer.bin"] {
        let link = Path::new("models").join(name);
        // On a system without symlinks, git writes a text file instead, which holds the target.
        let file = match fs::read_to_string(&link) {
            Ok(target) if target.len() < 256 => Path::new("models").join(target),
            _ => link,
        };
        println!("cargo::rerun-if-changed={}", file.display());
        fs::copy(file, out.join(name))?;
    }
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
