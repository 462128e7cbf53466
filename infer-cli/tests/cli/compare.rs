//! compare and perplexity beside slow, obvious computations of the same numbers.

use infer_core::format::TensorName;
use infer_core::{OwnedTokenizer, nats};
use tests::Run;
use tests::oracle::Oracle;

use super::*;

const TEXT: &str = "a b a b b a\nc d\n<|endoftext|>\nb a a b, a <|endoftext|> b b b a a b.\n\na a b a b, c b a b b";

/// A folder with a text, its tokens, model a.bin, and b.bin: the same with other weights.
fn two_models(test: &str) -> (PathBuf, Vec<u32>) {
    let (folder, a) = random_model(test, |_| {});
    std::fs::rename(a, folder.join("a.bin")).unwrap();
    let mut b = RandomModel::new(config(8, 5, 2, 4, 2), 3);
    b.tensor_mut(TensorName::W2).iter_mut().for_each(|w| *w *= 1.3);
    b.tensor_mut(TensorName::TokEmb).iter_mut().step_by(7).for_each(|w| *w += 0.05);
    std::fs::write(folder.join("b.bin"), b.to_file(Version::V0).bytes()).unwrap();
    std::fs::write(folder.join("text.txt"), TEXT).unwrap();
    let tokenizer = OwnedTokenizer::new(std::fs::read(folder.join("tokenizer.bin")).unwrap(), 300).unwrap();
    let stories = TEXT.split("<|endoftext|>").map(|story| tokenizer.encode(story.trim()).unwrap());
    (folder, stories.flatten().collect())
}

/// The places of a text that count: the tokens read from an empty context, and the one that
/// follows.
fn places(tokens: &[u32], window: usize, stride: usize) -> Vec<(Vec<u32>, u32)> {
    let mut places = Vec::new();
    let mut start = 0;
    while start + window < tokens.len() {
        let first = if start == 0 { 0 } else { window - stride };
        places.extend((start + first..start + window).map(|i| (tokens[start..=i].to_vec(), tokens[i + 1])));
        start += stride;
    }
    places
}

/// The probabilities that both models give to each token.
type Both = (Vec<f64>, Vec<f64>);

fn softmax(logits: &[f64]) -> Vec<f64> {
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| x.exp() / total).collect()
}

/// The ten likeliest tokens.
fn order(p: &[f64]) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..p.len()).collect();
    tokens.sort_by(|&i, &j| p[j].total_cmp(&p[i]));
    tokens.truncate(10);
    tokens
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

#[test]
fn compare_agrees_with_float64() {
    let (folder, tokens) = two_models("compare");
    let [a, b] = ["a.bin", "b.bin"].map(|name| Oracle::read(&std::fs::read(folder.join(name)).unwrap()));
    for (window, stride) in [(9, 9), (9, 4), (5, 1), (40, 3)] {
        let places = places(&tokens, window, stride);
        let predict = |model: &Oracle, tokens: &[u32]| softmax(model.logits(tokens).last().unwrap());
        let predicted: Vec<_> = places.iter().map(|(read, _)| (predict(&a, read), predict(&b, read))).collect();
        let kl = |(p, q): &Both| -> f64 { p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum() };
        let mut kls: Vec<f64> = predicted.iter().map(kl).collect();
        let kl_mean = mean(kls.iter().copied());
        kls.sort_by(f64::total_cmp);
        let n = kls.len();
        let share =
            |count: &dyn Fn(&Both) -> bool| predicted.iter().filter(|both| count(both)).count() as f64 / n as f64;
        let targets = || places.iter().map(|(_, target)| *target as usize).zip(&predicted);
        let want = [
            ("perplexity_a", mean(targets().map(|(target, (p, _))| -p[target].ln())).exp()),
            ("perplexity_b", mean(targets().map(|(target, (_, q))| -q[target].ln())).exp()),
            ("kl_mean", kl_mean),
            ("kl_median", kls[n.div_ceil(2) - 1]),
            ("kl_90_percent", kls[(9 * n).div_ceil(10) - 1]),
            ("kl_99_percent", kls[(99 * n).div_ceil(100) - 1]),
            ("kl_max", kls[n - 1]),
            ("same_top", share(&|(p, q)| order(p)[0] == order(q)[0])),
            ("top_10_changed", share(&|(p, q)| order(p) != order(q))),
        ];
        let (window, stride) = (window.to_string(), stride.to_string());
        let flags = ["compare", "a.bin", "b.bin", "text.txt", "--window", &window, "--stride", &stride, "--json"];
        let report = json(&run_in(&folder, &flags));
        assert_eq!(report["tokens"], n);
        for (name, want) in want {
            let got = report[name].as_f64().unwrap();
            assert!((got / want - 1.0).abs() < 1e-4, "{name}: {got} instead of {want} ({window}, {stride})");
        }
        let table = run_in(&folder, &[&flags[..8], &["--threads", "2"]].concat());
        let line = |label: &str, value: String| {
            assert!(stdout(&table).contains(&format!("{label}{value}")), "{label} {value}:\n{}", stdout(&table));
        };
        line("predicted        ", format!("{n} tokens\n"));
        line("KL divergence    ", format!("{:.7} nats", report["kl_mean"].as_f64().unwrap()));
        line("same top token   ", format!("{:.3}%", 100.0 * report["same_top"].as_f64().unwrap()));
        line("top 10 changed   ", format!("{:.3}%", 100.0 * report["top_10_changed"].as_f64().unwrap()));
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let (folder, _) = two_models("compare_with_itself");
    let report = json(&run_in(&folder, &["compare", "b.bin", "b.bin", "text.txt", "--window", "11", "--json"]));
    let alone = json(&run_in(&folder, &["perplexity", "b.bin", "text.txt", "--window", "11", "--json"]));
    assert_eq!((&report["kl_max"], &report["same_top"]), (&0.0.into(), &1.0.into()));
    assert_eq!(report["top_10_changed"], 0.0);
    assert_eq!((&report["perplexity_a"], &report["perplexity_b"]), (&alone["perplexity"], &alone["perplexity"]));
}

#[test]
fn compare_refuses_models_of_two_vocabularies() {
    let (folder, _) = two_models("compare_refuses");
    let other = folder.join("other");
    std::fs::create_dir(&other).unwrap();
    let compare = |b: &str, more: &[&str]| run_in(&folder, &[&["compare", "a.bin", b, "text.txt"], more].concat());
    std::fs::copy(folder.join("b.bin"), other.join("b.bin")).unwrap();
    std::fs::write(other.join("tokenizer.bin"), tokenizer_file(&[" ", "a", "c", " a"], 300)).unwrap();
    let words = ["token 261 is \"b\" for model a.bin and \"c\" for model other/b.bin", "-z"];
    assert_fails(&compare("other/b.bin", &["--window", "9"]), 2, &words);
    stdout(&compare("other/b.bin", &["--window", "9", "-z", "tokenizer.bin"]));
    let small = Config::new(8, 5, 2, 4, 299, 40).with_kv_heads(2);
    std::fs::write(other.join("b.bin"), RandomModel::new(small, 3).to_file(Version::V0).bytes()).unwrap();
    assert_fails(&compare("other/b.bin", &[]), 2, &["a.bin has 300 tokens", "other/b.bin has 299", "one vocabulary"]);
    let short = Config::new(8, 5, 2, 4, 300, 20).with_kv_heads(2);
    std::fs::write(folder.join("short.bin"), RandomModel::new(short, 3).to_file(Version::V0).bytes()).unwrap();
    assert_fails(&compare("short.bin", &["--window", "21"]), 2, &["--window 21", "1 to 20"]);
    assert!(stdout(&compare("short.bin", &[])).starts_with("windows          2 of 20 tokens\n"));
    assert_fails(&compare("nowhere.bin", &[]), 1, &["nowhere.bin"]);
    assert_fails(&run_in(&folder, &["compare", "a.bin", "b.bin"]), 2, &["TEXT"]);
}

/// The results are those of reading each window from its first token on, one token at a time.
#[test]
fn perplexity_with_a_stride() {
    let (folder, tokens) = two_models("stride");
    let file = tests::random::File::new(&std::fs::read(folder.join("a.bin")).unwrap());
    let mut model = Run::new(file.bytes(), 1);
    let perplexity = |window: usize, flags: &[&str]| {
        let window = window.to_string();
        run_in(&folder, &[&["perplexity", "a.bin", "text.txt", "--window", &window], flags].concat())
    };
    for (window, stride) in [(5, 1), (39, 1), (40, 7), (12, 11), (1, 1)] {
        let places = places(&tokens, window, stride);
        let mut nats_of = |(read, target): &(Vec<u32>, u32)| nats(model.logits(read).unwrap().last().unwrap(), *target);
        let want = places.iter().map(&mut nats_of).sum::<f64>() / places.len() as f64;
        let report = json(&perplexity(window, &["--stride", &stride.to_string(), "--json"]));
        assert_eq!(report["tokens"], places.len());
        assert_eq!(report["nats_per_token"], want, "{window}, {stride}");
    }
    assert!(
        stdout(&perplexity(9, &["--stride", "4"]))
            .starts_with(&format!("windows          {} of 9 tokens, 4 apart\n", 1 + (tokens.len() - 10) / 4))
    );
    assert_eq!(stdout(&perplexity(9, &["--stride", "9"])), stdout(&perplexity(9, &[])));
    assert_eq!(json(&perplexity(9, &["--stride", "2", "--windows", "3", "--json"]))["tokens"], 13);
    for (stride, words) in [("0", "1 to 9"), ("10", "1 to 9"), ("-1", "whole number")] {
        assert_fails(&perplexity(9, &["--stride", stride]), 2, &["--stride", words]);
    }
}
