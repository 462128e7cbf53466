//! Any bytes as a file of torch.save: refused with an error, or tensors that all can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_fuzz::file;
use trainer_fuzz::io::import::pytorch::open;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = open(&file(bytes)) else { return };
    let table = checkpoint.table;
    for name in table.names() {
        let tensor = table.get(name).unwrap();
        assert_eq!(table.read(tensor).unwrap().len() as u64, tensor.values().unwrap());
    }
});
