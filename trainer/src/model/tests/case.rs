//! A model and a batch, with what the CPU and dfdx's operations make of them.

use super::*;

pub(in crate::model) struct Case {
    pub(in crate::model) model: Llama<Cpu>,
    pub(in crate::model) tokens: Vec<u32>,
    pub(super) targets: Vec<u32>,
    pub(super) teacher: Vec<f32>,
    pub(super) sequences: usize,
    pub(super) length: usize,
}

impl Case {
    /// Weights far larger than at the start of a training, so that every part of the model matters.
    pub(in crate::model) fn new(config: Config, sequences: usize, length: usize) -> Case {
        Case::with_weights(0.3, config, sequences, length)
    }

    /// Weights that keep the size of activations, however wide the model. With larger ones
    /// attention looks at one key each, and rounding decides on which.
    pub(in crate::model) fn even(config: Config, sequences: usize, length: usize) -> Case {
        Case::with_weights(1.2 / (config.dim as f64).sqrt(), config, sequences, length)
    }

    fn with_weights(deviation: f64, config: Config, sequences: usize, length: usize) -> Case {
        let mut rng = fastrand::Rng::with_seed(7);
        let weights: Vec<Vec<f32>> = shapes(&config)
            .unwrap()
            .into_iter()
            .map(|Shape { rows, cols, .. }| match rows {
                1 => normal(&mut rng, 0.3, cols).into_iter().map(|x| 1.0 + x).collect(),
                _ => normal(&mut rng, deviation, rows * cols),
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

    /// With products of high precision.
    pub(super) fn high(mut self) -> Case {
        self.model.matmul_precision = MatmulPrecision::High;
        self
    }

    pub(in crate::model) fn batch(&self) -> Batch<'_> {
        let Case { tokens, targets, sequences, length, .. } = self;
        Batch { tokens, targets, starts: None, sequences: *sequences, length: *length }
    }

    pub(in crate::model) fn teacher(&self) -> Option<Teacher<'_>> {
        Some(Teacher { logits: &self.teacher, weight: 0.7, temperature: 1.5 })
    }

    pub(in crate::model) fn cpu(&self, options: &Options) -> (f32, Vec<Vec<f32>>) {
        self.cpu_of(&self.batch(), options)
    }

    pub(in crate::model) fn cpu_of(&self, batch: &Batch, options: &Options) -> (f32, Vec<Vec<f32>>) {
        let mut gradients = self.model.zero_gradients().unwrap();
        let loss = self.model.loss_and_gradients(batch, options, 1.0, &mut gradients).unwrap();
        (loss, self.to_vecs(&gradients))
    }

    pub(super) fn composed(&self, options: &Options) -> (f32, Vec<Vec<f32>>) {
        self.composed_of(&self.batch(), options)
    }

    pub(super) fn composed_of(&self, batch: &Batch, options: &Options) -> (f32, Vec<Vec<f32>>) {
        let start: Tensor<Rank0, f32, Cpu> = self.model.device.try_zeros().unwrap();
        let tape = start.traced(self.model.zero_gradients().unwrap()).split_tape().1;
        let loss = composed::loss(&self.model, batch, options, tape).unwrap();
        (loss.as_vec()[0], self.to_vecs(&loss.backward()))
    }

    pub(super) fn to_vecs(&self, gradients: &Gradients<Cpu>) -> Vec<Vec<f32>> {
        self.model.trained().iter().map(|p| gradients.get(&p.tensor).as_vec()).collect()
    }

    /// Asserts that gradients agree within `tolerance` of each tensor's largest (some are zero:
    /// those of wq over a single position).
    pub(in crate::model) fn assert_close(&self, a: &[Vec<f32>], b: &[Vec<f32>], tolerance: f32) {
        for ((parameter, a), b) in self.model.trained().iter().zip(a).zip(b) {
            let largest = b.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let worst = a.iter().zip(b).fold(0.0, |max: f32, (a, b)| max.max((a - b).abs()));
            let name = parameter.shape.name.as_str();
            assert!(worst <= tolerance * largest.max(0.2), "{name} {}: {worst} of {largest}", parameter.shape.layer);
        }
    }
}
