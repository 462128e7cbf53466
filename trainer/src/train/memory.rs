//! Refuses a training that does not fit into memory, before the system ends it.

use anyhow::bail;
use infer_core::Config;

use crate::model::training_bytes;
use crate::train::settings::{Device, Settings};

/// Estimates the memory of a training, of which this machine runs so many processes.
///
/// # Errors
/// The training needs more than is available. The message tells which settings to lower.
pub fn check(settings: &Settings, config: &Config, processes: usize) -> anyhow::Result<()> {
    let available = if settings.device == Device::Cpu { available() } else { None };
    fits(settings, config, available.map_or(f64::INFINITY, |bytes| bytes as f64 / processes as f64))
}

fn fits(settings: &Settings, config: &Config, available: f64) -> anyhow::Result<()> {
    let Settings { batch_size, max_seq_len, .. } = *settings;
    let need = |batch_size: usize| {
        let logits = if settings.teacher.is_some() { config.vocab_size as f64 } else { 0.0 };
        training_bytes(config, batch_size, max_seq_len, settings.lora_rank)
            + 4.0 * batch_size as f64 * max_seq_len as f64 * logits
    };
    let needed = need(batch_size);
    if needed <= available {
        // Tokens are counted in 64 bits.
        let tokens = batch_size as f64 * settings.gradient_accumulation_steps as f64 * max_seq_len as f64;
        if tokens >= 2f64.powi(62) {
            bail!("a step has {tokens:.0} tokens: lower batch_size, gradient_accumulation_steps or max_seq_len");
        }
        return Ok(());
    }
    let sequence = need(2) - need(1);
    let most = ((available - need(1)) / sequence).floor() + 1.0;
    let advice = if most >= 1.0 {
        format!("lower batch_size from {batch_size} to {most} or less; gradient_accumulation_steps makes up for it")
    } else {
        "lower dim, n_layers, vocab_size or max_seq_len".into()
    };
    bail!("this training takes about {} of memory, and {} are available: {advice}", gb(needed), gb(available))
}

fn gb(bytes: f64) -> String {
    format!("{:.1} GB", bytes / 1e9)
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

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
