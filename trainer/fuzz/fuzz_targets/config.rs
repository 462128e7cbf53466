//! Any bytes as a config.json: refused with an error, or a configuration that can be computed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trainer_fuzz::io::import::file::Fields;
use trainer_fuzz::io::import::huggingface_config::read;
use trainer_fuzz::io::import::model::Hints;

fuzz_target!(|bytes: &[u8]| {
    let Ok(fields) = Fields::parse(bytes, "config.json".into()) else { return };
    if let Ok(config) = read(&fields, &Hints::default()) {
        config.check().unwrap();
    }
});
