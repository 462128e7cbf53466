//! Any bytes as a tokenizer.model: refused with an error, or a tokenizer.bin that infer-core reads.
#![no_main]

use infer_core::OwnedTokenizer;
use libfuzzer_sys::fuzz_target;
use trainer_fuzz::io::import::sentencepiece::read;
use trainer_fuzz::io::vocabulary::Vocabulary;

fuzz_target!(|bytes: &[u8]| {
    let Ok(words) = read(bytes) else { return };
    let size = words.pieces.size();
    let Vocabulary::Bin(bin) = words.pieces.fit(size).unwrap() else { panic!("no tokenizer.bin") };
    assert_eq!(OwnedTokenizer::whole(bin).unwrap().get().vocab_size(), size);
});
