use dfdx::prelude::{Backward, Cpu, NoneTape, ZerosTensor};
use infer_core::{Config, WeightType};

use super::*;

/// Grouped queries, a length that is no multiple of anything, an ignored target.
const TINY: Config = Config {
    dim: 16,
    hidden_dim: 24,
    n_layers: 2,
    n_heads: 4,
    n_kv_heads: 2,
    vocab_size: 19,
    seq_len: 70,
    shared_classifier: true,
    weights: WeightType::F32,
};

struct Case {
    model: Llama<Cpu>,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    teacher: Vec<f32>,
    sequences: usize,
    length: usize,
}

impl Case {
    /// Weights far larger than at the start of a training, so that every part of the model matters.
    fn new(config: Config, sequences: usize, length: usize) -> Case {
        let mut rng = fastrand::Rng::with_seed(7);
        let weights: Vec<Vec<f32>> = shapes(&config)
            .into_iter()
            .map(|(_, _, rows, cols)| match rows {
                1 => normal(&mut rng, 0.3, cols).into_iter().map(|x| 1.0 + x).collect(),
                _ => normal(&mut rng, 0.3, rows * cols),
            })
            .collect();
        let model = Llama::from_slices(config, &Cpu::default(), &weights).unwrap();
        let n = sequences * length;
        let tokens = (0..n).map(|_| rng.u32(..config.vocab_size as u32)).collect();
        let mut targets: Vec<u32> = (0..n).map(|_| rng.u32(..config.vocab_size as u32)).collect();
        targets[n / 3] = IGNORED;
        let teacher = normal(&mut rng, 2.0, n * config.vocab_size);
        Case { model, tokens, targets, teacher, sequences, length }
    }

    fn batch(&self) -> Batch<'_> {
        let Case { tokens, targets, sequences, length, .. } = self;
        Batch { tokens, targets, sequences: *sequences, length: *length }
    }

    fn teacher(&self) -> Option<Teacher<'_>> {
        Some(Teacher { logits: &self.teacher, weight: 0.7, temperature: 1.5 })
    }

    fn fused(&self, options: &Options) -> (f32, Vec<Vec<f32>>) {
        let mut gradients = self.model.zero_gradients().unwrap();
        let loss = self.model.loss_and_gradients(&self.batch(), options, 1.0, &mut gradients).unwrap();
        (loss, self.to_vecs(&gradients))
    }

    fn composed(&self, options: &Options) -> (f32, Vec<Vec<f32>>) {
        let start: Tensor<Rank0, f32, Cpu> = self.model.device.try_zeros().unwrap();
        let tape = start.traced(self.model.zero_gradients().unwrap()).split_tape().1;
        let loss = composed::loss(&self.model, &self.batch(), options, tape).unwrap();
        (loss.as_vec()[0], self.to_vecs(&loss.backward()))
    }

    fn to_vecs(&self, gradients: &Gradients<Cpu>) -> Vec<Vec<f32>> {
        self.model.parameters.iter().map(|p| gradients.get(&p.tensor).as_vec()).collect()
    }

    /// Asserts that gradients agree within `tolerance` of each tensor's largest (some are zero: those of wq over a single position).
    fn assert_close(&self, a: &[Vec<f32>], b: &[Vec<f32>], tolerance: f32) {
        for ((parameter, a), b) in self.model.parameters.iter().zip(a).zip(b) {
            let largest = b.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let worst = a.iter().zip(b).fold(0.0, |max: f32, (a, b)| max.max((a - b).abs()));
            let name = parameter.name.as_str();
            assert!(worst <= tolerance * largest.max(0.2), "{name} {}: {worst} of {largest}", parameter.layer);
        }
    }
}

#[test]
fn fused_agrees_with_composed() {
    let own = Config { shared_classifier: false, ..TINY };
    let one_head = Config { n_heads: 1, n_kv_heads: 1, dim: 24, ..TINY };
    let all_heads = Config { n_kv_heads: 4, vocab_size: 130, ..TINY };
    for config in [TINY, own, one_head, all_heads] {
        for (sequences, length) in [(2, 1), (2, 11), (3, 16), (2, 37), (1, 64), (2, 70)] {
            let case = Case::new(config, sequences, length);
            for (dropout, teacher) in [(0.0, None), (0.3, None), (0.0, case.teacher()), (0.2, case.teacher())] {
                let options = Options { dropout, seed: 5, teacher };
                let (loss, gradients) = case.fused(&options);
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

#[test]
fn learns() {
    let device = Cpu::default();
    let mut model = Llama::init(TINY, &device, 1).unwrap();
    let mut adam = AdamW::new(&model, [0.9, 0.95], 0.1).unwrap();
    let tokens: Vec<u32> = (0..2 * 11).map(|i| i * 7 % 19).collect();
    let targets: Vec<u32> = (0..2 * 11).map(|i| if i == 5 { IGNORED } else { (i + 1) * 7 % 19 }).collect();
    let batch = Batch { tokens: &tokens, targets: &targets, sequences: 2, length: 11 };
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
