mod adapters;
mod case;
mod chats;
#[cfg(feature = "cuda")]
mod cuda;
mod rope;

use dfdx::prelude::{Backward, Cpu, NoneTape, Rank0, SplitTape, Tensor, Trace, ZerosTensor};
use infer_core::format::{Header, TensorName, Version, write};
use infer_core::{Config, ModelBytes};

pub(super) use self::case::Case;
use super::llama::normal;
use super::*;
use crate::io::tensors::{Shape, shapes};
use crate::io::weights::{FileVersion, tests::weights};

/// Two query heads share each key/value head.
pub(super) const TINY: Config = Config::new(16, 24, 2, 4, 19, 70).with_kv_heads(2);

/// [`TINY`] but for a few fields.
fn tiny(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = TINY;
    change(&mut config);
    config
}

#[test]
fn cpu_agrees_with_composed() {
    let one_head = Config::new(24, 24, 2, 1, 19, 70);
    let all_heads = Config::new(16, 24, 2, 4, 130, 70);
    for config in [TINY, TINY.with_own_classifier(), one_head, all_heads] {
        for (sequences, length) in [(2, 1), (2, 11), (3, 16), (2, 37), (1, 64), (2, 70)] {
            let case = Case::new(config, sequences, length);
            for (dropout, teacher) in [(0.0, None), (0.3, None), (0.0, case.teacher()), (0.2, case.teacher())] {
                let options = Options { dropout, seed: 5, teacher };
                let (loss, gradients) = case.cpu(&options);
                let (expected_loss, expected) = case.composed(&options);
                assert!(
                    (loss - expected_loss).abs() < 1e-5 * expected_loss.abs(),
                    "{loss} {expected_loss} {options:?}"
                );
                case.assert_close(&gradients, &expected, 2e-5);
            }
        }
    }
}

/// With AMX the only difference; without it there is none.
#[test]
fn high_precision_is_close() {
    let edges = Config::new(80, 100, 2, 4, 130, 70).with_kv_heads(2);
    let blocks = Config::new(64, 96, 2, 4, 64, 128).with_kv_heads(2).with_own_classifier();
    let thin = tiny(|c| c.hidden_dim = 1);
    for (config, sequences, length) in [(TINY, 2, 37), (edges, 3, 70), (blocks, 2, 128), (thin, 1, 16)] {
        let case = Case::new(config, sequences, length);
        let high = Case::new(config, sequences, length).high();
        for (dropout, teacher) in [(0.0, None), (0.2, case.teacher())] {
            let options = Options { dropout, seed: 5, teacher };
            let (expected_loss, expected) = case.cpu(&options);
            let (loss, gradients) = high.cpu(&options);
            assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss} {options:?}");
            case.assert_close(&gradients, &expected, 5e-4);
        }
    }
}

#[test]
fn bfloat16_is_near() {
    if !Dtype::Bfloat16.is_on_cpu() {
        return ::tests::shared::skip("this processor multiplies no bfloat16");
    }
    let mut case = Case::new(TINY, 2, 37);
    let (expected_loss, expected) = case.cpu(&Options::default());
    case.model.dtype = Dtype::Bfloat16;
    let (loss, gradients) = case.cpu(&Options::default());
    assert!(loss != expected_loss && (loss - expected_loss).abs() < 1e-2 * expected_loss, "{loss} {expected_loss}");
    case.assert_close(&gradients, &expected, 5e-2);
}

#[test]
fn learns() {
    let device = Cpu::default();
    let mut model = Llama::init(TINY, &device, 1).unwrap();
    let mut adam = AdamW::new(&model, [0.9, 0.95], 0.1).unwrap();
    let tokens: Vec<u32> = (0..2 * 11).map(|i| i * 7 % 19).collect();
    let targets: Vec<u32> = (0..2 * 11).map(|i| if i == 5 { IGNORED } else { (i + 1) * 7 % 19 }).collect();
    let batch = Batch { tokens: &tokens, targets: &targets, starts: None, sequences: 2, length: 11 };
    let first = model.loss(&batch).unwrap();
    for _ in 0..50 {
        let mut gradients = model.zero_gradients().unwrap();
        model.loss_and_gradients(&batch, &Options::default(), 1.0, &mut gradients).unwrap();
        clip_gradients(&model, &mut gradients, 1.0).unwrap();
        adam.step(&mut model, 1e-2, &mut gradients).unwrap();
    }
    let last = model.loss(&batch).unwrap();
    assert!(last < 0.3 * first, "{first} {last}");
    let direct = composed::loss(&model, &batch, &Options::default(), NoneTape).unwrap().as_vec()[0];
    assert!((direct - last).abs() < 1e-5, "{direct} {last}");
}

/// Numbers that reference.py computes as well: MurmurHash3's finaliser of the index, in 0..1.
fn uniform(stream: u32, n: usize) -> impl Iterator<Item = f64> {
    let start = 0x9E37_79B9u32.wrapping_mul(stream + 1);
    (0..n as u32).map(move |i| {
        let mut h = start.wrapping_add(i);
        h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
        h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
        f64::from((h ^ (h >> 16)) >> 8) / f64::from(1 << 24)
    })
}

/// What PyTorch computed, and the models it computed it of: see tests/reference/reference.py.
struct Reference(safetensors::SafeTensors<'static>);

impl Reference {
    const GROUPED: Config = Config::new(16, 12, 2, 4, 11, 70).with_kv_heads(2);
    const UNTIED: Config = Config::new(12, 20, 1, 2, 13, 70).with_own_classifier();

    fn load() -> Reference {
        Reference::of(include_bytes!("../../tests/reference/reference.safetensors"))
    }

    fn of(bytes: &'static [u8]) -> Reference {
        Reference(safetensors::SafeTensors::deserialize(bytes).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let data = self.0.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn case(config: Config) -> Case {
        let weights: Vec<Vec<f32>> = shapes(&config)
            .unwrap()
            .into_iter()
            .enumerate()
            .map(|(i, Shape { rows, cols, .. })| {
                let centre = if rows == 1 { 1.0 } else { 0.0 };
                uniform(i as u32, rows * cols).map(|u| (0.6 * u - 0.3 + centre) as f32).collect()
            })
            .collect();
        let model = Llama::from_slices(config, &Cpu::default(), &weights).unwrap();
        let mut case = Case { model, tokens: vec![], targets: vec![], teacher: vec![], sequences: 2, length: 9 };
        case.next_batch(0);
        case
    }
}

impl Case {
    pub fn next_batch(&mut self, stream: u32) {
        let (n, vocab_size) = (self.sequences * self.length, self.model.config.vocab_size as f64);
        let tokens = |stream| uniform(stream, n).map(|u| (u * vocab_size) as u32).collect();
        (self.tokens, self.targets) = (tokens(1000 + 2 * stream), tokens(1001 + 2 * stream));
        self.targets[n / 3] = IGNORED;
    }
}

#[test]
fn gradients_agree_with_pytorch() {
    let reference = Reference::load();
    for (name, config) in [("grouped", Reference::GROUPED), ("untied", Reference::UNTIED)] {
        let case = Reference::case(config);
        let expected: Vec<_> = case
            .model
            .parameters
            .iter()
            .map(|p| reference.get(&format!("{name}.{}.{}", p.shape.name.as_str(), p.shape.layer)))
            .collect();
        let cpu = case.cpu(&Options::default());
        let composed = case.composed(&Options::default());
        let high = Reference::case(config).high().cpu(&Options::default());
        for ((loss, gradients), tolerance) in [(cpu, 1e-5), (composed, 1e-5), (high, 1e-4)] {
            assert!((loss - reference.get(&format!("{name}.loss"))[0]).abs() < tolerance, "{name}: loss {loss}");
            case.assert_close(&gradients, &expected, tolerance);
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    const STEP: f32 = 0.006;
    for config in [Reference::GROUPED, Reference::UNTIED] {
        let case = Reference::case(config);
        let weights = case.model.to_vecs().unwrap();
        let gradients = case.cpu(&Options::default()).1;
        let loss_at = |tensor: usize, i: usize, step: f32| {
            let mut weights = weights.clone();
            weights[tensor][i] += step;
            f64::from(Llama::from_slices(config, &case.model.device, &weights).unwrap().loss(&case.batch()).unwrap())
        };
        for (tensor, gradient) in gradients.iter().enumerate() {
            for (i, gradient) in gradient.iter().enumerate() {
                let difference = |step| loss_at(tensor, i, step) - loss_at(tensor, i, -step);
                // Five-point stencil: the error is of fourth order.
                let slope = (8.0 * difference(STEP) - difference(2.0 * STEP)) / (12.0 * f64::from(STEP));
                let name = case.model.parameters[tensor].shape.name.as_str();
                assert!((slope - f64::from(*gradient)).abs() < 1e-4, "{name} {i}: {gradient}, differences {slope}");
            }
        }
    }
}

#[test]
fn adamw_follows_pytorch() {
    follow_pytorch(Reference::case(Reference::GROUPED));
    follow_pytorch(Reference::case(Reference::GROUPED).high());
}

fn follow_pytorch(mut case: Case) {
    let reference = Reference::load();
    let mut adam = AdamW::new(&case.model, [0.9, 0.95], 0.1).unwrap();
    let expected = reference.get("adamw.losses").into_iter().zip(reference.get("adamw.norms"));
    for (step, (expected_loss, expected_norm)) in expected.enumerate() {
        case.next_batch(step as u32);
        let mut gradients = case.model.zero_gradients().unwrap();
        // In two halves, as gradient accumulation does.
        let mut loss = 0.0;
        for _ in 0..2 {
            let batch = case.batch();
            loss += case.model.loss_and_gradients(&batch, &Options::default(), 0.5, &mut gradients).unwrap() / 2.0;
        }
        let norm = clip_gradients(&case.model, &mut gradients, 1.0).unwrap();
        adam.step(&mut case.model, 1e-2, &mut gradients).unwrap();
        assert!((loss - expected_loss).abs() < 1e-4, "step {step}: {loss}, PyTorch {expected_loss}");
        assert!((norm - expected_norm).abs() < 1e-3, "step {step}: norm {norm}, PyTorch {expected_norm}");
    }
    assert_eq!(adam.steps, 10);
}

#[test]
fn saved_moments_continue_bit_for_bit() {
    let step = |case: &mut Case, adam: &mut AdamW<Cpu>| {
        let mut gradients = case.model.zero_gradients().unwrap();
        case.model.loss_and_gradients(&case.batch(), &Options::default(), 1.0, &mut gradients).unwrap();
        adam.step(&mut case.model, 1e-2, &mut gradients).unwrap();
    };
    let mut case = Reference::case(Reference::GROUPED);
    let mut adam = AdamW::new(&case.model, [0.9, 0.95], 0.1).unwrap();
    step(&mut case, &mut adam);
    let mut other = Reference::case(Reference::GROUPED);
    other.model = Llama::from_slices(Reference::GROUPED, &Cpu::default(), &case.model.to_vecs().unwrap()).unwrap();
    let mut resumed = AdamW::new(&other.model, [0.9, 0.95], 0.1).unwrap();
    let [m, v] = adam.moments(&case.model).unwrap();
    resumed.set_moments(&other.model, [&m, &v], adam.steps).unwrap();
    step(&mut case, &mut adam);
    step(&mut other, &mut resumed);
    assert_eq!(case.model.to_vecs().unwrap(), other.model.to_vecs().unwrap());
}

/// Without gradients only the decay changes a weight. `w1` is a matrix of a single row.
#[test]
fn matrices_decay_and_norms_do_not() {
    let mut model = Case::new(tiny(|c| c.hidden_dim = 1), 1, 1).model;
    let mut adam = AdamW::new(&model, [0.9, 0.95], 0.5).unwrap();
    let before = model.to_vecs().unwrap();
    let mut gradients = model.zero_gradients().unwrap();
    adam.step(&mut model, 0.1, &mut gradients).unwrap();
    for ((parameter, before), after) in model.parameters.iter().zip(before).zip(model.to_vecs().unwrap()) {
        let Shape { name, .. } = parameter.shape;
        let is_norm = matches!(name, TensorName::RmsAtt | TensorName::RmsFfn | TensorName::RmsFinal);
        let factor = if is_norm { 1.0 } else { 0.95 };
        for (before, after) in before.iter().zip(after) {
            assert!((after - factor * before).abs() < 1e-6, "{name:?}: {before}, then {after}");
        }
    }
}

#[test]
fn threads_do_not_change_results() {
    for case in [Case::new(TINY, 3, 64), Case::new(TINY, 3, 64).high()] {
        let options = Options { dropout: 0.1, seed: 3, teacher: case.teacher() };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.cpu(&options))
        };
        assert_eq!(run(1), run(3));
    }
}

#[test]
fn exported_model_gives_the_same_logits_in_infer_core() {
    for config in [TINY, TINY.with_own_classifier()] {
        agrees_with_infer_core(&Case::new(config, 1, 70));
    }
}

fn agrees_with_infer_core(case: &Case) {
    let Case { model, tokens, sequences, length, .. } = case;
    let mut file = Vec::new();
    let header = Header::new(Version::V1, model.config);
    write(&mut file, &header, |name, layer| Ok(model.tensor(name, layer).as_vec().into())).unwrap();
    let reread = Llama::from_model(&::tests::Run::new(&file, 7).model, &Cpu::default()).unwrap();
    assert_eq!(reread.to_vecs().unwrap(), model.to_vecs().unwrap());
    let window = |tokens| ::tests::Run::new(&file, 7).logits(tokens).unwrap().concat();
    let expected: Vec<f32> = tokens.chunks(*length).flat_map(window).collect();
    let cpu = model.logits(tokens, *sequences, *length).unwrap();
    let composed = composed::logits_vec(model, tokens, *sequences, *length).unwrap();
    for ((expected, cpu), composed) in expected.iter().zip(cpu).zip(composed) {
        assert!((expected - cpu).abs() < 1e-4 && (expected - composed).abs() < 1e-4, "{expected} {cpu} {composed}");
    }
}

#[test]
fn bad_batches_are_errors() {
    let case = Case::new(TINY, 2, 8);
    let loss = |batch| case.model.loss(&batch).unwrap_err().to_string();
    let good = case.batch();
    let outside = vec![19; 16];
    assert!(loss(Batch { tokens: &outside, ..good }).contains("token 19 is outside the model's vocabulary of 19"));
    assert!(loss(Batch { targets: &outside, ..good }).contains("target 19 is outside"));
    assert!(loss(Batch { targets: &[IGNORED; 16], ..good }).contains("no target"));
    assert!(loss(Batch { targets: &[1; 15], ..good }).contains("15 targets for 16 tokens"));
    assert!(loss(Batch { sequences: 3, ..good }).contains("16 tokens given for 3 x 8"));
    assert!(loss(Batch { sequences: 0, ..good }).contains("16 tokens given for 0 x 8"));
    let starts = [[0; 9].as_slice(), &[2; 7]].concat();
    assert!(loss(Batch { starts: Some(&starts[1..]), ..good }).contains("15 starts for 16 tokens"));
    assert!(loss(Batch { starts: Some(&starts), ..good }).contains("a text of position 1 begins at 2"));
    assert!(loss(Batch { sequences: 1, length: 71, ..good }).contains("windows of 71 tokens"));
}

#[test]
fn initialisation_is_llama2c_s() {
    let config = Config::new(64, 192, 2, 4, 500, 70).with_kv_heads(2);
    let model = Llama::init(config, &Cpu::default(), 1).unwrap();
    for (parameter, weights) in model.parameters.iter().zip(model.to_vecs().unwrap()) {
        let n = weights.len() as f64;
        let mean = weights.iter().map(|w| f64::from(*w)).sum::<f64>() / n;
        let deviation = (weights.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum::<f64>() / n).sqrt();
        let (expected_mean, expected) = match parameter.shape.name {
            TensorName::RmsAtt | TensorName::RmsFfn | TensorName::RmsFinal => (1.0, 0.0),
            TensorName::Wo | TensorName::W3 => (0.0, 0.01),
            _ => (0.0, 0.02),
        };
        assert!((mean - expected_mean).abs() < 1e-3, "{:?}: mean {mean}", parameter.shape.name);
        assert!(
            (deviation - expected).abs() < 0.05 * expected + 1e-9,
            "{:?}: deviation {deviation}",
            parameter.shape.name
        );
    }
    let again = Llama::init(config, &Cpu::default(), 1).unwrap();
    assert_eq!(model.to_vecs().unwrap(), again.to_vecs().unwrap());
}

#[test]
fn every_tensor_of_a_file_is_where_infer_core_looks_for_it() {
    let weights = weights();
    for version in [FileVersion::V0, FileVersion::V1] {
        let file = ModelBytes::copy(&weights.to_file(version).unwrap()).unwrap();
        let model = file.model().unwrap();
        assert_eq!(*model.config(), weights.header.config);
        let read = Llama::from_model(&model, &Cpu::default()).unwrap().to_vecs().unwrap();
        assert_eq!(read, weights.tensors, "{version:?}");
    }
}

#[test]
fn int8_weights_are_within_half_a_step() {
    let weights = weights();
    let file = ModelBytes::copy(&weights.to_file(FileVersion::V2).unwrap()).unwrap();
    let model = file.model().unwrap();
    let read = Llama::from_model(&model, &Cpu::default()).unwrap().to_vecs().unwrap();
    for (read, given) in read.iter().flatten().zip(weights.tensors.iter().flatten()) {
        assert!((read - given).abs() <= 0.5 / 127.0 + 1e-6, "{read} {given}");
    }
}
