//! Adapters beside the composed model and PyTorch.

use super::chats::{answers, reference};
use super::*;
use crate::io::lora::Lora;

impl Case {
    /// With adapters of which neither part is small.
    fn adapted(mut self, rank: usize) -> Case {
        let lora = Lora::new(rank, 0.7 * rank as f32).with_ends(&[3, 7]);
        let mut rng = fastrand::Rng::with_seed(3);
        let shapes = lora.parts(&self.model.config).unwrap();
        let values: Vec<_> = shapes.iter().map(|(shape, _)| normal(&mut rng, 0.3, shape.size())).collect();
        self.model.adapt_with(lora, &values).unwrap();
        self
    }
}

#[test]
fn adapters_have_the_composed_model_s_gradients() {
    let all_heads = Config::new(16, 24, 2, 4, 130, 70);
    for config in [TINY, TINY.with_own_classifier(), all_heads] {
        for (rank, sequences, length) in [(1, 2, 11), (4, 3, 64), (17, 2, 70)] {
            let case = Case::new(config, sequences, length).adapted(rank);
            let high = Case::new(config, sequences, length).adapted(rank).high();
            for (dropout, teacher) in [(0.0, None), (0.2, case.teacher())] {
                let options = Options { dropout, seed: 5, teacher };
                let (loss, gradients) = case.cpu(&options);
                let (expected_loss, expected) = case.composed(&options);
                assert_eq!(gradients.len(), 7 * 2 * config.n_layers + 1);
                assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss} {options:?}");
                case.assert_close(&gradients, &expected, 2e-5);
                high.assert_close(&high.cpu(&options).1, &expected, 5e-4);
            }
        }
    }
}

/// Adapters that were just made change nothing; training changes them and nothing else.
#[test]
fn adapters_learn_and_the_weights_stay() {
    let mut case = Case::new(TINY, 2, 11);
    let (before, weights) = (case.model.loss(&case.batch()).unwrap(), case.model.to_vecs().unwrap());
    case.model.adapt(Lora::new(4, 8.0).with_ends(&[3]), 1).unwrap();
    assert_eq!(case.model.loss(&case.batch()).unwrap(), before);
    let mut adam = AdamW::new(&case.model, [0.9, 0.95], 0.0).unwrap();
    for _ in 0..60 {
        let mut gradients = case.model.zero_gradients().unwrap();
        case.model.loss_and_gradients(&case.batch(), &Options::default(), 1.0, &mut gradients).unwrap();
        clip_gradients(&case.model, &mut gradients, 1.0).unwrap();
        adam.step(&mut case.model, 3e-2, &mut gradients).unwrap();
    }
    let after = case.model.loss(&case.batch()).unwrap();
    assert!(after < 0.5 * before, "{before} {after}");
    assert_eq!(case.model.to_vecs().unwrap(), weights);
    let merged = Llama::from_slices(TINY, &Cpu::default(), &case.model.merged().unwrap()).unwrap();
    assert_eq!(merged.loss(&case.batch()).unwrap(), after, "merged weights are those that were trained");
}

#[test]
fn adapters_agree_with_pytorch() {
    let lora = Lora::new(2, 3.0);
    let reference = reference();
    let mut case = answers();
    let shapes = lora.shapes(&case.model.config).unwrap();
    let values = (2000..)
        .zip(shapes.as_flattened())
        .map(|(stream, shape)| uniform(stream, shape.size()).map(|u| (0.6 * u - 0.3) as f32).collect::<Vec<_>>());
    let values: Vec<_> = values.collect();
    case.model.adapt_with(lora, &values).unwrap();
    let name = |part, shape: &Shape| format!("lora.{part}.{}.{}", shape.name.as_str(), shape.layer);
    let expected: Vec<_> =
        shapes.iter().flat_map(|[a, b]| [reference.get(&name("a", a)), reference.get(&name("b", b))]).collect();
    chats::agrees_with_pytorch(case, "lora", &expected);
}
