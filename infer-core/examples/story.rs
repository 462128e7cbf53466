//! Tells a story as it comes, on several threads: from the folder of the repository,
//! `cargo run -p infer-core --features std --example story`.

use infer_core::{BOS, Buffers, Limits, ModelBytes, OwnedTokenizer, Pool, Sampler, Session, TextStream, threads_for};
use std::io::{Write, stdout};
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = ModelBytes::read("models/model.bin")?;
    let model = file.model()?;
    let tokenizer = OwnedTokenizer::new(std::fs::read("models/tokenizer.bin")?, model.config().vocab_size)?;
    let pool = Pool::new(threads_for(model.config(), 1))?;
    let mut buffers = Buffers::new(model.config(), Limits::new(256).with_batch(64).with_threads(pool.threads().get()))?;
    let mut session = Session::new(model, &mut buffers, &pool, Sampler::new(1.0, 0.9, 42)?)?;
    let mut text = TextStream::new();
    print!("Once upon a time");
    let mut token = session.next_after(&tokenizer.encode("Once upon a time")?)?;
    while token != BOS && session.pos() < 256 {
        print!("{}", text.push(tokenizer.decode(session.last_token(), token)?));
        stdout().flush()?;
        token = session.next_after(&[token])?;
    }
    println!("{}", text.finish());
    Ok(())
}
