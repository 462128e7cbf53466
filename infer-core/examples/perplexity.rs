//! How well models predict a text, and what int8 costs: from the folder of the repository,
//! `cargo run -p infer-core --features std --example perplexity`.

use infer_core::{Buffers, Engine, KvType, Limits, ModelBytes, OwnedTokenizer, Perplexity};

const TEXT: &str = "Once upon a time, there was a little girl named Lily. She loved to play in the park with her dog, \
    Max. One day, they found a big red ball under a tree. Lily threw the ball and Max ran to get it. They played all \
    day and were very happy.";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("nats per byte  perplexity per token");
    for (folder, file) in
        [("models", "model.bin"), ("models/firmware", "model-f32.bin"), ("models/firmware", "model.bin")]
    {
        let file = format!("{folder}/{file}");
        let model = ModelBytes::read(&file)?;
        let tokenizer = std::fs::read(format!("{folder}/tokenizer.bin"))?;
        for (name, kv) in [("f32", KvType::F32), ("int8", KvType::Q8)] {
            let sum = measure(&model, &tokenizer, kv)?;
            println!("{:13.4}  {:20.3}  {file}, {name} KV cache", sum.per_byte(), sum.perplexity());
            assert!(sum.per_byte() < 0.7, "these models were trained on such stories");
        }
    }
    Ok(())
}

fn measure(model: &ModelBytes, tokenizer: &[u8], kv: KvType) -> Result<Perplexity, infer_core::Error> {
    let model = model.model()?;
    let config = model.config();
    let tokenizer = OwnedTokenizer::new(tokenizer, config.vocab_size)?;
    let tokens = tokenizer.encode(TEXT)?;
    let mut buffers = Buffers::new(config, Limits::new(config.seq_len).with_batch(128).with_kv(kv))?;
    let mut state = buffers.state()?;
    let mut sum = Perplexity::default();
    // Each token is predicted from those before it, as many as the context holds.
    for (window, targets) in tokens[..tokens.len() - 1].chunks(config.seq_len).zip(tokens[1..].chunks(config.seq_len)) {
        sum.add_window(&model, &mut state, &Engine::native(), window, targets, |token| tokenizer.text_bytes(token))?;
    }
    Ok(sum)
}
