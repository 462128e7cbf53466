//! What a training will take: memory, operations and time, computed from its settings; on a CPU its
//! rate is measured.

use std::fmt::Write;
use std::time::Duration;

use anyhow::ensure;
use indicatif::{HumanCount, HumanDuration};
use infer_core::Config;

use crate::io::tensors::{Shape, shapes};
use crate::model::{CpuMemory, Dtype, MatmulPrecision};
use crate::report::{flops_per_token, peak};
use crate::train::memory::{self, size};
use crate::train::settings::{Device, InitFrom, Settings};
use crate::train::start::{Start, describe};

/// Share of the peak that a time is computed for: what well-made programs reach with large models.
const UTILISATION: f64 = 0.4;
/// More memory than any machine has. Within it no size overflows.
const MOST_BYTES: f64 = 1e15;
/// More layers than any model has. They are listed one by one.
const MOST_LAYERS: usize = 1 << 20;

/// Describes a training before it begins. No data is read; a model or a checkpoint that the
/// training goes on from is. The vocabulary is as large as `vocab_size` says.
///
/// # Errors
/// The weights that a training goes on from are not there, or no machine could hold it.
pub fn plan(settings: &Settings) -> anyhow::Result<String> {
    let config = match settings.init_from {
        InitFrom::Scratch => settings.config(),
        _ => Start::find(settings)?.config(settings)?,
    };
    let on_cpu = CpuMemory::new(&config, settings.batch_size, settings.max_seq_len, settings.lora_rank).total();
    ensure!(
        on_cpu < MOST_BYTES
            && config.n_layers <= MOST_LAYERS
            && (settings.gradient_accumulation_steps as f64) < MOST_BYTES,
        "this training takes about {} of memory: lower batch_size, dim, n_layers, vocab_size or max_seq_len",
        size(on_cpu)
    );
    let parameters: usize = shapes(&config)?.iter().map(Shape::size).sum();
    let mut text = format!("{} parameters: {}\n", HumanCount(parameters as u64), describe(&config));
    let parts = memory::purposes(settings, &config, settings.batch_size)?;
    let total: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let (format, recompute) =
        (settings.dtype.format(), if settings.recompute { ", computed again in backward" } else { "" });
    let format = if settings.device == Device::Cpu { Dtype::Float32 } else { format };
    writeln!(text, "memory, with activations in {}{recompute}:", format.on_gpu(MatmulPrecision::Highest))?;
    for (purpose, bytes) in parts.into_iter().chain([("in all", total)]) {
        writeln!(text, "{:>12}  {purpose}", size(bytes))?;
    }
    if settings.device == Device::Cpu
        && let Err(e) = memory::check(settings, &config, 1)
    {
        writeln!(text, "it does not fit: {e:#}")?;
    }
    write!(text, "{}", time(settings, &config))?;
    Ok(text)
}

/// Operations, tokens, and the time that they take.
fn time(settings: &Settings, config: &Config) -> String {
    let Settings { batch_size, gradient_accumulation_steps: passes, max_seq_len, max_iters, .. } = *settings;
    let tokens = batch_size as f64 * passes as f64 * max_seq_len as f64;
    let flops = flops_per_token(config);
    let (executed, note) = match settings.recompute {
        false => (flops, ""),
        true => (flops * 4.0 / 3.0, "; with activations computed again a third more"),
    };
    let (peak, whose) = peak_of(settings);
    let rate = UTILISATION * peak / executed; // tokens per second
    let time = |tokens: f64| match tokens / rate {
        seconds if seconds < 1.0 => format!("{:.1} ms", 1e3 * seconds),
        seconds if seconds < 600.0 => format!("{seconds:.1} s"),
        seconds => Duration::try_from_secs_f64(seconds).map_or("ages".into(), |time| HumanDuration(time).to_string()),
    };
    let all = tokens * max_iters as f64;
    format!(
        "{} tokens per step: {batch_size} x {max_seq_len}, {passes} times\n\
         {} per token, {} per step: 6 per parameter, and attention's; forward and backward{note}\n\
         time at {:.0}% of {}/s ({whose}); small models reach less:\n\
         {} tokens/s, {} per step, {} for {max_iters} steps ({} tokens)\n",
        HumanCount(tokens as u64),
        operations(flops),
        operations(flops * tokens),
        100.0 * UTILISATION,
        operations(peak),
        HumanCount(rate as u64),
        time(tokens),
        time(all),
        HumanCount(all as u64),
    )
}

/// Operations per second that the device could reach, and where the number is from.
fn peak_of(settings: &Settings) -> (f64, &'static str) {
    if let Some(gflops) = settings.peak_gflops {
        return (1e9 * gflops, "peak_gflops");
    }
    if settings.device == Device::Cpu {
        return (1e9 * peak::measure(), "measured with products in f32");
    }
    // Of the H100 SXM's data sheet, without sparsity.
    match (settings.dtype.format(), settings.matmul_precision) {
        (Dtype::Float32, MatmulPrecision::Medium) => (495e12, "an H100's peak in TF32; peak_gflops names another"),
        (Dtype::Float32, _) => (67e12, "an H100's peak in f32; peak_gflops names another"),
        _ => (989e12, "an H100's peak in 16 bits; peak_gflops names another"),
    }
}

/// Floating-point operations in words.
fn operations(flops: f64) -> String {
    let units = [("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)];
    let (unit, size) = units.into_iter().find(|(_, size)| flops >= *size).unwrap_or(("k", 1e3));
    format!("{:.1} {unit}FLOP", flops / size)
}

#[cfg(test)]
mod tests {
    use dfdx::prelude::Cpu;

    use super::*;
    use crate::model::Llama;
    use crate::train::settings::tests::parse;

    fn lines(flags: &[&str]) -> Vec<String> {
        plan(&parse(flags).unwrap()).unwrap().lines().map(String::from).collect()
    }

    /// The size of a purpose.
    fn memory(lines: &[String], purpose: &str) -> String {
        let line = lines.iter().find(|line| line.ends_with(&format!("  {purpose}"))).unwrap();
        line.strip_suffix(purpose).unwrap().trim().into()
    }

    #[test]
    fn a_small_plan_counts_what_the_model_has() {
        let flags =
            ["--dim", "288", "--n-heads", "6", "--n-layers", "6", "--vocab-size", "32000", "--peak-gflops", "100"];
        let flags = [&flags[..], &["--batch-size", "4", "--max-seq-len", "256", "--max-iters", "10"]].concat();
        let lines = lines(&flags);
        let config = parse(&flags).unwrap().config();
        let parameters = Llama::init(config, &Cpu::default(), 0).unwrap().parameter_count();
        assert_eq!(parameters, 15_191_712); // llama2.c's stories15M
        assert!(lines[0].starts_with("15,191,712 parameters: dim 288, hidden_dim 768, 6 layers"), "{lines:?}");
        assert_eq!(memory(&lines, "weights"), "60.8 MB"); // 4 bytes each
        assert_eq!(memory(&lines, "moments of AdamW"), "121.5 MB");
        let total = CpuMemory::new(&config, 4, 256, None).total();
        assert_eq!(memory(&lines, "in all"), size(total));
        let text = lines.join("\n");
        // 6 · 15,191,712 + 12 · 6 · 288 · 256 operations per token, and 40 of 100 GFLOP/s.
        for part in [
            "1,024 tokens per step",
            "96.5 MFLOP per token, 98.8 GFLOP per step",
            "time at 40% of 100.0 GFLOP/s",
            "414 tokens/s, 2.5 s per step",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn seven_billion_are_planned_without_a_gpu() {
        let flags =
            ["--dim", "4096", "--hidden-dim", "11008", "--n-layers", "32", "--n-heads", "32", "--n-kv-heads", "8"];
        let more = ["--vocab-size", "32000", "--max-seq-len", "4096", "--batch-size", "1", "--device", "cuda"];
        let more =
            [&more[..], &["--gradient-accumulation-steps", "1024", "--dtype", "bfloat16", "--recompute"]].concat();
        let lines = lines(&[&flags[..], &more].concat());
        // 32 · (2 · 4096² + 2 · 4096 · 1024 + 3 · 4096 · 11008 + 2 · 4096) + 32000 · 4096 + 4096
        assert!(lines[0].starts_with("5,802,037,248 parameters"), "{lines:?}");
        for (purpose, bytes) in
            [("weights", "23.2 GB"), ("their copies for products", "11.6 GB"), ("moments of AdamW", "46.4 GB")]
        {
            assert_eq!(memory(&lines, purpose), bytes, "{purpose}");
        }
        assert!(memory(&lines, "in all").strip_suffix(" GB").unwrap().parse::<f64>().unwrap() < 141.0);
        let text = lines.join("\n");
        for part in ["4,194,304 tokens per step: 1 x 4096, 1024 times", "41.3 GFLOP per token", "40% of 989.0 TFLOP/s"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_no_machine_holds_is_refused() {
        for flags in [["--batch-size", "4611686018427387904"], ["--batch-size", "1000000000000"], ["--dim", "1000000"]]
        {
            let error = plan(&parse(&flags).unwrap()).unwrap_err().to_string();
            assert!(error.contains("lower batch_size") && error.lines().count() == 1, "{error}");
        }
    }
}
