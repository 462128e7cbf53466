//! `trainer` without a command: trains with the settings of a file and of the flags.

use std::path::Path;

use anyhow::{Context, anyhow};
use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::report::output::{self, Usage};
use crate::train;
use crate::train::group::Group;
use crate::train::settings::Settings;

/// Trains with the settings of `file`, overridden by the flags, or prints a plan of that.
pub fn run(file: Option<&Path>, flags: Settings, plan: bool, matches: &ArgMatches) -> anyhow::Result<()> {
    if plan {
        return output::print(train::plan::plan(&load(file, flags, matches)?)?.as_bytes());
    }
    let group = Group::join()?;
    let settings = load(file, flags, matches).and_then(|settings| settings.check_machine().map(|()| settings));
    let done = group.agree(settings).and_then(|settings| train::run::run(&settings, &group));
    group.finish(done)
}

/// Merges the settings of the file with the flags, which take precedence, and checks the result.
fn load(file: Option<&Path>, flags: Settings, matches: &ArgMatches) -> anyhow::Result<Settings> {
    if let Some(flag) = too_large(matches) {
        return Err(Usage(format!("{flag}: it must be below 2^63")).into());
    }
    let settings = match file {
        Some(path) => overlay(path, &flags, matches).with_context(|| format!("settings {}", path.display()))?,
        None => flags,
    };
    settings.check().map_err(|e| Usage(format!("{e:#}")))?;
    Ok(settings)
}

fn overlay(path: &Path, flags: &Settings, matches: &ArgMatches) -> anyhow::Result<Settings> {
    let text = std::fs::read_to_string(path)?;
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = text[..e.span().map_or(0, |span| span.start)].lines().count().max(1);
        anyhow!("line {line}: {}", e.message())
    })?;
    for (key, value) in toml::Table::try_from(flags)? {
        if matches.value_source(&key) == Some(ValueSource::CommandLine) || !table.contains_key(&key) {
            table.insert(key, value);
        }
    }
    table.try_into().map_err(|e: toml::de::Error| anyhow!("{}", e.to_string().trim_end().replace('\n', " ")))
}

/// The first flag with a number that TOML cannot hold.
fn too_large(matches: &ArgMatches) -> Option<String> {
    let is_too_large = |value: &str| value.parse::<u64>().is_ok_and(|n| i64::try_from(n).is_err());
    matches.ids().find_map(|id| {
        let mut values = matches.try_get_raw(id.as_str()).ok()??.filter_map(|value| value.to_str());
        values.find(|value| is_too_large(value)).map(|value| format!("{id} is {value}"))
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    /// The settings of a command line and a file.
    fn parse(flags: &[&str], file: Option<&str>) -> anyhow::Result<Settings> {
        let command = Settings::augment_args(Command::new("trainer").no_binary_name(true));
        let matches = command.try_get_matches_from(flags)?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("settings.toml");
        if let Some(text) = file {
            std::fs::write(&path, text)?;
        }
        load(file.map(|_| path.as_path()), Settings::from_arg_matches(&matches)?, &matches)
    }

    #[test]
    fn flags_override_the_file_and_the_file_the_defaults() {
        let file = "max_iters = 7\nlearning_rate = 1e-4\nn_heads = 8\neval_only = true";
        let settings = parse(&["--max-iters", "9"], Some(file)).unwrap();
        assert_eq!((settings.max_iters, settings.learning_rate, settings.n_heads), (9, 1e-4, 8));
        assert!(settings.eval_only && settings.decay_lr);
        assert_eq!(settings.beta2, 0.95);
        assert!(!parse(&["--eval-only=false"], Some(file)).unwrap().eval_only);
        let again = toml::to_string(&settings).unwrap();
        assert_eq!(toml::to_string(&parse(&[], Some(&again)).unwrap()).unwrap(), again);
    }

    #[test]
    fn mistakes_are_named() {
        for (flags, file, part) in [
            (&[][..], Some("max_itres = 7"), "max_itres"),
            (&[], Some("max_iters = \"many\""), "max_iters"),
            (&[], Some("max_iters = 7\ndim = = 3"), "line 2"),
            (&[], Some("dim = 30\nn_heads = 4"), "n_heads is 4: it must divide dim 30"),
            (&["--n-heads", "64"], None, "n_heads is 64: dim 64 / n_heads must be even"),
            (&["--n-kv-heads", "3"], None, "n_kv_heads is 3: it must divide n_heads 4"),
            (&["--max-seq-len", "0"], None, "max_seq_len is 0: it must be at least 1"),
            (&["--vocab-size", "4294967296"], None, "vocab_size is 4294967296: it must be"),
            (&["--dim", "9223372036854775808"], None, "dim is 9223372036854775808: it must be below 2^63"),
            (&["--multiple-of", "9223372036854775807"], None, "hidden_dim is 9223372036854775807: it must be"),
            (&["--seed", "18446744073709551615"], None, "seed is 18446744073709551615: it must be below 2^63"),
            (&["--device", "tpu"], None, "device is \"tpu\": it must be cpu, cuda or cuda:NUMBER"),
            (&["--dropout", "1"], None, "dropout is 1"),
            (&["--learning-rate", "nan"], None, "learning_rate is NaN"),
            (&["--batch-size", "0"], None, "batch_size is 0"),
            (&["--dtype", "float8"], None, "dtype is \"float8\": it must be float32, bfloat16 or float16"),
            (&["--dtype", "float16"], None, "dtype is float16: it is for a GPU"),
            (&["--recompute"], None, "recompute is for a GPU"),
            (&["--teacher-stories", "5"], None, "teacher"),
            (&["--device", "cuda:x"], None, "device is \"cuda:x\": it must be cpu, cuda or cuda:NUMBER"),
            (&["--vocab-source", "llama3"], None, "llama3"),
        ] {
            let error = format!("{:#}", parse(flags, file).unwrap_err());
            assert!(error.contains(part), "{flags:?} {file:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
