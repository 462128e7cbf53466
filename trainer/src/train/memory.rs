//! Refuses a training that does not fit into memory, before the system ends it.

use anyhow::{bail, ensure};
use infer_core::Config;

use crate::model::{CpuMemory, GpuMemory, Pass};
use crate::train::settings::{Device, Settings};

/// Estimates the memory of a training on the processor, of which this machine runs so many
/// processes.
///
/// # Errors
/// The training needs more than is available. The message tells which settings to lower.
pub fn check(settings: &Settings, config: &Config, processes: usize) -> anyhow::Result<()> {
    let available = if settings.device == Device::Cpu { available() } else { None };
    fits(settings, config, available.map_or(f64::INFINITY, |bytes| bytes as f64 / processes as f64))
}

/// Compares the memory of a training with what a device has free, if it has memory of its own.
///
/// # Errors
/// As [`check`].
pub fn check_device(settings: &Settings, config: &Config, free: Option<u64>) -> anyhow::Result<()> {
    let Some(free) = free else { return Ok(()) };
    ensure!(
        settings.batch_size < 1 << 16,
        "batch_size is {}: a GPU takes at most 65535 sequences in a pass; gradient_accumulation_steps makes up for it",
        settings.batch_size
    );
    fits(settings, config, free as f64)
}

/// The bytes that a training takes with so many sequences in a pass, by purpose.
///
/// # Errors
/// As [`GpuMemory::new`].
pub fn purposes(settings: &Settings, config: &Config, sequences: usize) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let (length, teacher) = (settings.max_seq_len, settings.teacher.is_some());
    let memory = CpuMemory::new(config, sequences, length, settings.lora_rank);
    // What no GPU has is not counted in whole bytes, nor so many layers one by one.
    if settings.device == Device::Cpu || memory.weights + memory.activations > 1e15 || config.n_layers > 1 << 20 {
        let taught = if teacher { 4.0 * sequences as f64 * length as f64 * config.vocab_size as f64 } else { 0.0 };
        return Ok(vec![
            ("weights", memory.weights),
            ("their copies for products", memory.copies),
            ("gradients", memory.gradients),
            ("moments of AdamW", memory.moments),
            ("activations", memory.activations),
            ("logits", memory.logits + taught),
            ("copies while a checkpoint is written", memory.saving),
        ]);
    }
    let (dtype, recompute) = (settings.dtype.format(), settings.recompute);
    let memory = GpuMemory::new(config, Pass { sequences, length, dtype, recompute, teacher })?;
    let parts = [
        ("weights", memory.weights),
        ("their copies for products", memory.copies),
        ("gradients", memory.gradients),
        ("moments of AdamW", memory.moments),
        ("activations and logits", memory.activations),
        ("the driver", memory.driver),
    ];
    Ok(parts.map(|(purpose, bytes)| (purpose, bytes as f64)).to_vec())
}

fn needed(settings: &Settings, config: &Config, sequences: usize) -> anyhow::Result<f64> {
    Ok(purposes(settings, config, sequences)?.iter().map(|(_, bytes)| bytes).sum())
}

fn fits(settings: &Settings, config: &Config, available: f64) -> anyhow::Result<()> {
    let Settings { batch_size, max_seq_len, .. } = *settings;
    let bytes = needed(settings, config, batch_size)?;
    if bytes <= available {
        // Tokens are counted in 64 bits.
        let tokens = batch_size as f64 * settings.gradient_accumulation_steps as f64 * max_seq_len as f64;
        ensure!(
            tokens < 2f64.powi(46),
            "a step has {tokens:.0} tokens: lower batch_size, gradient_accumulation_steps or max_seq_len"
        );
        return Ok(());
    }
    let one = needed(settings, config, 1)?;
    let most = ((available - one) / (needed(settings, config, 2)? - one)).floor() + 1.0;
    let on_gpu = settings.device != Device::Cpu;
    let mut advice = if most >= 1.0 {
        format!("lower batch_size from {batch_size} to {most} or less; gradient_accumulation_steps makes up for it")
    } else {
        "lower dim, n_layers, vocab_size or max_seq_len".into()
    };
    if on_gpu && !settings.recompute {
        advice += ", or set recompute";
    }
    let place = if on_gpu { " on the GPU" } else { "" };
    bail!("this training takes about {} of memory{place}, and {} are available: {advice}", size(bytes), size(available))
}

/// A number of bytes, in words.
pub fn size(bytes: f64) -> String {
    if bytes < 1e9 { format!("{:.1} MB", bytes / 1e6) } else { format!("{:.1} GB", bytes / 1e9) }
}

/// Bytes that this process can allocate: those that are free in the machine, and at most the limit
/// of its container.
#[cfg(target_os = "linux")]
fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kb| kb * 1024)
    });
    let container = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    machine.into_iter().chain(container).min()
}

#[cfg(not(target_os = "linux"))]
fn available() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::settings::tests::parse;

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let error = |flags: &[&str], available| {
            let settings = parse(flags).unwrap();
            fits(&settings, &settings.config(), available).unwrap_err().to_string()
        };
        let error_of_100_million = error(&["--batch-size", "100000000"], 23e9);
        assert!(error_of_100_million.contains("lower batch_size from 100000000 to "), "{error_of_100_million}");
        assert!(error_of_100_million.contains("23.0 GB"), "{error_of_100_million}");
        let most = error_of_100_million.split(" to ").nth(1).unwrap().split(' ').next().unwrap();
        let settings = parse(&["--batch-size", most]).unwrap();
        fits(&settings, &settings.config(), 23e9).unwrap();

        assert!(error(&["--batch-size", "4611686018427387904"], f64::INFINITY).contains("tokens"));
        assert!(error(&["--dim", "1000000"], 23e9).contains("lower dim"));
    }

    #[test]
    fn a_gpu_is_told_of_recompute() {
        let settings = Settings { device: Device::Cuda(0), ..parse(&["--batch-size", "4096"]).unwrap() };
        let error = fits(&settings, &settings.config(), 8e9).unwrap_err().to_string();
        assert!(error.contains("on the GPU") && error.ends_with("or set recompute"), "{error}");
        let most = error.split(" to ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let fitting = |batch_size| Settings { batch_size, ..settings.clone() };
        fits(&fitting(most), &settings.config(), 8e9).unwrap();
        fits(&fitting(most + most / 10), &settings.config(), 8e9).unwrap_err();
        fits(&fitting(usize::MAX), &settings.config(), 8e9).unwrap_err();
        let mut layers = settings.config();
        layers.n_layers = 1 << 31;
        assert!(fits(&fitting(1), &layers, 8e9).unwrap_err().to_string().contains("lower dim, n_layers"));
        let fewer = Settings { recompute: true, ..fitting(most + most / 10) };
        fits(&fewer, &settings.config(), 8e9).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
