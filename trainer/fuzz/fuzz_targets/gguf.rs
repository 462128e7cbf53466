//! Any bytes as a GGUF file: refused with an error, or tensors that all can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_fuzz::file;
use trainer_fuzz::io::import::file::Input;
use trainer_fuzz::io::import::gguf_header::read;

fuzz_target!(|bytes: &[u8]| {
    let Ok((header, table)) = read(Input::open(&file(bytes)).unwrap()) else { return };
    let _ = (header.size("general.alignment"), header.text("general.architecture"));
    for name in table.names() {
        let tensor = table.get(name).unwrap();
        assert_eq!(table.read(tensor).unwrap().len() as u64, tensor.values().unwrap());
    }
});
