//! Any bytes as a pickle: refused with an error, or values that all refer to values that are there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_fuzz::io::import::pickle::read;

fuzz_target!(|bytes: &[u8]| {
    let Ok(values) = read(bytes) else { return };
    let root = values.root;
    let ids: Vec<_> = values.dict(root).into_iter().flatten().map(|(_, id)| id).collect();
    for id in ids.into_iter().chain(values.list(root).into_iter().flatten().copied()) {
        let _ = (values.get(id), values.text(id), values.size(id));
    }
});
