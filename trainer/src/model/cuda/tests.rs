//! Whole steps and updates by the kernels, against the CPU, without a GPU.
#![allow(unsafe_code)]

mod shim;
mod update;

use dfdx::prelude::Cpu;
use infer_core::Config;

use self::shim::{Heap, Shim, forbid};
use super::gpu::{Gpu, Memory};
use super::kernels::{Kind, source};
use super::layout::{Layout, Parameters, Sizes};
use super::step::Step;
use super::update::{adamw, copy, sum_of_squares, sums};
use crate::io::loss_scale::LossScale;
use crate::io::tensors::shapes;
use crate::model::optimizer::clip_factor;
use crate::model::rates::Rates;
use crate::model::tests::{Case, TINY};
use crate::model::{AdamW, Batch, Dtype, IGNORED, Llama, Options, clip_gradients};

/// Loss, gradients and logits of a case.
type Results = (f32, Vec<Vec<f32>>, Vec<f32>);

/// How a step is computed.
#[derive(Clone, Copy, Debug)]
struct How {
    dtype: Dtype,
    loss_scale: f32,
    recompute: bool,
}

const F32: How = How { dtype: Dtype::Float32, loss_scale: 1.0, recompute: false };

/// A model in training, in the shim's memory.
struct Emulated<'a> {
    shim: &'a Shim,
    how: How,
    config: Config,
    weights: Heap,
    copies: Heap,
    moments: [Heap; 2],
    gradients: Heap,
}

impl<'a> Emulated<'a> {
    fn new(shim: &'a Shim, how: How, model: &Llama<Cpu>) -> Result<Emulated<'a>, String> {
        let config = model.config;
        let places = Parameters::new(&config, 0);
        let zeros = || Heap(vec![0; places.numbers()]);
        let (weights, gradients, moments) = (zeros(), zeros(), [zeros(), zeros()]);
        let copies = shim.alloc(if how.dtype == Dtype::Float32 { 0 } else { places.matrices / 2 })?;
        let emulated = Emulated { shim, how, config, weights, copies, moments, gradients };
        let at = Parameters::new(&config, emulated.weights.address());
        for (shape, values) in shapes(&config).unwrap().iter().zip(model.to_vecs().unwrap()) {
            shim.upload(at.address(shape), &values)?;
        }
        if how.dtype != Dtype::Float32 {
            copy(shim, &emulated.at())?;
        }
        emulated.guard(true);
        Ok(emulated)
    }

    /// The weights as products take them.
    fn at(&self) -> Parameters {
        let weights = Parameters::new(&self.config, self.weights.address());
        match self.how.dtype {
            Dtype::Float32 => weights,
            dtype => weights.with_copies(self.copies.address(), dtype),
        }
    }

    /// Forbids the memory between arrays or allows it: a step goes around it, an update over it.
    fn guard(&self, forbidden: bool) {
        for heap in [&self.weights, &self.gradients] {
            forbid(&Parameters::new(&self.config, heap.address()).gaps, forbidden);
        }
        forbid(&self.at().gaps, forbidden);
    }

    fn step<'o>(&self, sizes: Sizes, options: Options<'o>, scale: f32) -> Result<(Step<'o, Shim>, Heap), String>
    where
        'a: 'o,
    {
        let memory = self.shim.alloc(Layout::new(&sizes, 0).words)?;
        let layout = Layout::new(&sizes, memory.address());
        forbid(&layout.gaps, true);
        Ok((Step { gpu: self.shim, sizes, layout, weights: self.at(), options, scale }, memory))
    }

    /// The loss of a batch; adds `scale` times its gradients to those so far.
    fn loss(&self, batch: &Batch, options: &Options, scale: f32) -> Result<f32, String> {
        let (How { dtype, loss_scale, recompute }, config) = (self.how, self.config);
        let Batch { sequences, length, starts, .. } = *batch;
        let (teacher, texts) = (options.teacher.is_some(), starts.is_some());
        let sizes = Sizes { config, sequences, length, keep: true, teacher, texts, dtype, recompute };
        let (step, _memory) = self.step(sizes, *options, scale * loss_scale)?;
        let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
        let sum = step.loss(batch, Some(&Parameters::new(&config, self.gradients.address())))?;
        Ok((sum / counted as f64) as f32)
    }

    fn logits(&self, &Batch { tokens, sequences, length, .. }: &Batch) -> Result<Vec<f32>, String> {
        let (How { dtype, recompute, .. }, config) = (self.how, self.config);
        let sizes = Sizes { config, sequences, length, keep: false, teacher: true, texts: false, dtype, recompute };
        let (step, _memory) = self.step(sizes, Options::default(), 0.0)?;
        step.logits(tokens)
    }

    /// The numbers of each parameter, of an array.
    fn read(&self, array: &Heap) -> Vec<Vec<f32>> {
        let at = Parameters::new(&self.config, 0);
        let numbers = |shape| {
            let words = &array.0[at.address(shape) as usize / 4..][..shape.size()];
            words.iter().map(|bits| f32::from_bits(*bits)).collect()
        };
        shapes(&self.config).unwrap().iter().map(numbers).collect()
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        let mut gradients = self.read(&self.gradients);
        gradients.iter_mut().flatten().for_each(|x| *x /= self.how.loss_scale);
        gradients
    }

    fn clear_gradients(&mut self) {
        self.gradients = Heap(vec![0; self.gradients.0.len()]);
        self.guard(true);
    }

    /// The norm of the gradients.
    fn norm(&self) -> Result<f32, String> {
        let (array, n) = (self.gradients.address(), self.gradients.0.len());
        let memory = self.shim.alloc(sums(n))?;
        self.guard(false);
        let sum = sum_of_squares(self.shim, array, n, memory.address())?;
        self.guard(true);
        Ok(sum.sqrt() as f32 / self.how.loss_scale)
    }

    /// Updates the weights by `factor` times the gradients.
    fn update(&self, rates: &Rates, factor: f32) -> Result<(), String> {
        let [m, v] = self.moments.each_ref().map(Memory::address);
        self.guard(false);
        adamw(self.shim, &self.at(), [m, v], (self.gradients.address(), factor / self.how.loss_scale), rates)?;
        self.guard(true);
        Ok(())
    }
}

fn emulated(shim: &Shim, how: How, model: &Llama<Cpu>, batch: &Batch, options: &Options) -> Result<Results, String> {
    let model = Emulated::new(shim, how, model)?;
    let loss = model.loss(batch, options, 1.0)?;
    Ok((loss, model.gradients(), model.logits(batch)?))
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |max, (a, b)| if (a - b).abs() <= max { max } else { (a - b).abs() })
}

/// Head sizes of 4 to 68, of which 1 to 4 threads share a row; more rows than a block has, and more
/// keys than a tile.
#[test]
fn emulated_kernels_agree_with_cpu() {
    let wide = Config::new(136, 40, 1, 2, 130, 70).with_kv_heads(1);
    let one_head = Config::new(24, 24, 2, 1, 19, 70).with_own_classifier();
    let odd = Config::new(36, 25, 2, 2, 19, 150);
    for (config, seed) in [(TINY, 0), (one_head, 1), (wide, 2), (odd, 3)] {
        let Some(shim) = Shim::new(Kind::new(config.head_size(), Dtype::Float32, 9), seed, |source| source) else {
            return;
        };
        for (sequences, length) in [(2, 1), (2, 11), (3, 37), (1, config.seq_len)] {
            let case = Case::new(config, sequences, length);
            for (dropout, teacher) in [(0.0, None), (0.3, case.teacher())] {
                let options = Options { dropout, seed: 5, teacher };
                let starts = second_halves(&case.batch());
                let batch = Batch { starts: (dropout > 0.0).then_some(&starts), ..case.batch() };
                let (expected_loss, expected) = case.cpu_of(&batch, &options);
                let (loss, gradients, logits) = emulated(&shim, F32, &case.model, &batch, &options).unwrap();
                assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{config:?}: {loss} {expected_loss}");
                // Sums of products in another order: 1e-5 is seen where the gradient is 0.
                case.assert_close(&gradients, &expected, 1e-4);
                let expected = case.model.logits(&case.tokens, sequences, length).unwrap();
                let worst = largest_difference(&logits, &expected);
                assert!(worst < 1e-4, "{config:?}: {worst}");
            }
        }
    }
}

/// Activations of 16 bits: the loss and the direction of the gradients are those of f32, with and
/// without tensor cores, for heads that are padded and windows of several blocks of attention.
#[test]
fn sixteen_bits_come_near() {
    let wide = Config::new(136, 40, 1, 2, 130, 70).with_kv_heads(1);
    let long = Config::new(36, 25, 2, 2, 19, 150);
    let one_head = Config::new(128, 40, 1, 1, 19, 70);
    // float16 has three bits more.
    for (dtype, loss_scale, tolerance) in [(Dtype::Bfloat16, 1.0, 8e-2), (Dtype::Float16, 1024.0, 1e-2)] {
        for (config, sequences, length) in [(TINY, 3, 37), (wide, 1, 70), (long, 1, 130), (one_head, 1, 70)] {
            let case = Case::even(config, sequences, length);
            for capability in [7, 8] {
                let kind = Kind::new(config.head_size(), dtype, capability);
                let Some(shim) = Shim::new(kind, 4, |source| source) else { return };
                assert_eq!(kind.tensor_cores, capability == 8);
                comes_near(&shim, &case, How { dtype, loss_scale, recompute: false }, tolerance);
            }
        }
    }
}

fn comes_near(shim: &Shim, case: &Case, how: How, tolerance: f32) {
    let starts = second_halves(&case.batch());
    for (dropout, teacher) in [(0.0, None), (0.3, case.teacher())] {
        let options = Options { dropout, seed: 5, teacher };
        let batch = Batch { starts: (dropout > 0.0).then_some(&starts), ..case.batch() };
        let (expected_loss, expected) = case.cpu_of(&batch, &options);
        let (loss, gradients, logits) = emulated(shim, how, &case.model, &batch, &options).unwrap();
        assert!((loss - expected_loss).abs() < tolerance / 5.0 * expected_loss, "{loss} {expected_loss}");
        case.assert_close(&gradients, &expected, tolerance);
        let expected = case.model.logits(&case.tokens, batch.sequences, batch.length).unwrap();
        let (worst, largest) =
            (largest_difference(&logits, &expected), largest_difference(&expected, &vec![0.0; expected.len()]));
        println!("{how:?}: {worst} of {largest}");
        assert!(worst > 0.0 && worst < tolerance * largest, "{worst} of {largest}");
    }
}

/// Where texts begin if the second half of each window is a text of its own.
fn second_halves(&Batch { sequences, length, .. }: &Batch) -> Vec<u32> {
    let half: Vec<u32> = (0..length).map(|i| if 2 * i < length { 0 } else { length.div_ceil(2) as u32 }).collect();
    half.repeat(sequences)
}

/// Ten steps of AdamW with clipping, each of two passes over a new batch, by the kernels and by the
/// CPU; in float16 the first step overflows.
#[test]
fn ten_steps_follow_the_cpu() {
    let formats = [(Dtype::Float32, 1.0, 1e-5), (Dtype::Bfloat16, 1.0, 1e-2), (Dtype::Float16, 2f32.powi(24), 1e-2)];
    for (dtype, scale, tolerance) in formats {
        let Some(shim) = Shim::new(Kind::new(TINY.head_size(), dtype, 9), 6, |source| source) else { return };
        let mut case = Case::new(TINY, 2, 21);
        let mut loss_scale = LossScale { scale, ..LossScale::default() };
        let mut model = Emulated::new(&shim, How { dtype, ..F32 }, &case.model).unwrap();
        let mut adam = AdamW::new(&case.model, [0.9, 0.95], 0.1).unwrap();
        while adam.steps < 10 {
            let step = adam.steps;
            case.next_batch(step);
            let passes = [0, 1].map(|pass| Options { dropout: 0.1, seed: u64::from(2 * step + pass), teacher: None });
            model.how.loss_scale = loss_scale.scale;
            model.clear_gradients();
            let losses = passes.map(|options| model.loss(&case.batch(), &options, 0.5).unwrap());
            let norm = model.norm().unwrap();
            if !loss_scale.update(norm.is_finite()) {
                continue;
            }
            let mut gradients = case.model.zero_gradients().unwrap();
            let expected = passes
                .map(|options| case.model.loss_and_gradients(&case.batch(), &options, 0.5, &mut gradients).unwrap());
            let expected_norm = clip_gradients(&case.model, &mut gradients, 0.1).unwrap();
            adam.step(&mut case.model, 1e-2, &mut gradients).unwrap();
            model.update(&adam.rates(1e-2), clip_factor(norm, 0.1).unwrap()).unwrap();
            for (loss, expected) in losses.iter().zip(expected) {
                assert!((loss - expected).abs() < tolerance * expected, "{dtype:?}, step {step}: {loss} {expected}");
            }
            let difference = (norm - expected_norm).abs();
            assert!(difference < 10.0 * tolerance * expected_norm, "{dtype:?}, step {step}: {norm} {expected_norm}");
        }
        let is_half = dtype == Dtype::Float16;
        assert_eq!((loss_scale.skipped > 0, loss_scale.scale < scale), (is_half, is_half), "{loss_scale:?}");
    }
}

#[test]
fn activations_can_be_computed_again() {
    let config = Config::new(24, 40, 3, 2, 19, 40);
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let Some(shim) = Shim::new(Kind::new(config.head_size(), dtype, 9), 1, |source| source) else { return };
        let case = Case::new(config, 2, 33);
        let options = Options { dropout: 0.2, seed: 7, teacher: None };
        let [kept, again] = [false, true].map(|recompute| {
            emulated(&shim, How { dtype, recompute, loss_scale: 1.0 }, &case.model, &case.batch(), &options).unwrap()
        });
        assert!(kept == again, "{dtype:?}");
    }
}

#[test]
fn memory_of_activations_that_are_computed_again_is_of_one_layer() {
    let config = Config::new(64, 172, 12, 8, 512, 256);
    let words = |recompute| {
        let (teacher, texts, dtype) = (false, false, Dtype::Bfloat16);
        Layout::new(&Sizes { config, sequences: 4, length: 256, keep: true, teacher, texts, dtype, recompute }, 0).words
    };
    let positions = 4 * 256;
    let (input, layer) = (positions * 64, positions * (2 * 64 + 2 + 8 + (64 + 192 + 64 + 64 + 2 * 172) / 2));
    assert_eq!(words(false) - words(true), 11 * layer - 11 * input);
}

#[test]
fn a_missing_barrier_shows() {
    const BARRIER: &str = "__syncthreads();";
    let config = Config::new(24, 24, 1, 1, 190, 70); // logits for every warp of a block
    let case = Case::new(config, 1, 70);
    let options = [None, case.teacher()].map(|teacher| Options { teacher, ..Options::default() });
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let kind = Kind::new(config.head_size(), dtype, 9);
        let run =
            |shim: &Shim, options: &Options| emulated(shim, How { dtype, ..F32 }, &case.model, &case.batch(), options);
        let Some(shim) = Shim::new(kind, 0, |source| source) else { return };
        let expected = options.map(|options| run(&shim, &options));
        assert!(expected.iter().all(Result::is_ok));
        let source = source(kind);
        let barriers = source.matches(BARRIER).count();
        // The other kernels are the same.
        let first = source.split("// Attention on tensor cores").next().filter(|_| kind.tensor_cores);
        for barrier in first.map_or(0, |before| before.matches(BARRIER).count())..barriers {
            let without = |source: String| {
                let parts: Vec<&str> = source.split(BARRIER).collect();
                let (before, after) = parts.split_at(barrier + 1);
                format!("{};{}", before.join(BARRIER), after.join(BARRIER))
            };
            let Some(mut shim) = Shim::new(kind, 0, without) else { return };
            let mut agrees = |seed| {
                shim.seed = seed;
                options.iter().zip(&expected).all(|(options, expected)| run(&shim, options) == *expected)
            };
            assert!(!(1..9).all(&mut agrees), "{kind:?}: barrier {barrier} of {barriers} is not needed");
        }
    }
}
