//! The parsers of trainer's import, without the rest of trainer: an instrumented build of dfdx, and
//! of candle, which reads quantised blocks, would take many minutes. The modules have the places
//! that they have there.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

#[allow(dead_code)]
#[path = "."]
pub mod io {
    #[path = "../../src/io/foreign.rs"]
    pub mod foreign;
    #[path = "../../src/io/vocabulary.rs"]
    pub mod vocabulary;

    #[path = "."]
    pub mod import {
        #[path = "blocks.rs"]
        pub mod blocks;
        #[path = "../../src/io/import/file.rs"]
        pub mod file;
        #[path = "../../src/io/import/gguf_header.rs"]
        pub mod gguf_header;
        #[path = "../../src/io/import/huggingface_config.rs"]
        pub mod huggingface_config;
        #[path = "../../src/io/import/model.rs"]
        pub mod model;
        #[path = "../../src/io/import/pickle.rs"]
        pub mod pickle;
        #[path = "../../src/io/import/pytorch.rs"]
        pub mod pytorch;
        #[path = "../../src/io/import/sentencepiece.rs"]
        pub mod sentencepiece;
        #[path = "../../src/io/import/tensors.rs"]
        pub mod tensors;
        #[path = "../../src/io/import/vocabulary.rs"]
        pub mod vocabulary;
        #[path = "../../src/io/import/zip.rs"]
        pub mod zip;
    }
}

/// A file of this process with these bytes, for parsers that read files. It lies in memory where
/// the system has such a folder.
pub fn file(bytes: &[u8]) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = folder.join(format!("trainer-fuzz-{}", std::process::id()));
    let mut file = File::create(&path).unwrap();
    file.write_all(bytes).unwrap();
    path
}
