//! The GPU against the CPU, where there is a GPU.

use dfdx::prelude::Cuda;

use super::*;
use crate::model::{AllReduce, Nccl};

/// Without a GPU the tests say that they are skipped.
fn gpu() -> Option<Cuda> {
    open_gpu(0).inspect_err(|e| println!("skipped: {e}")).ok()
}

fn on(device: &Cuda, case: &Case) -> Llama<Cuda> {
    Llama::from_slices(case.model.config, device, &case.model.to_vecs().unwrap()).unwrap()
}

fn to_vecs(model: &Llama<Cuda>, gradients: &mut Gradients<Cuda>) -> Vec<Vec<f32>> {
    let to_vec = |parameter: &Parameter<Cuda>| {
        let mut values = vec![0.0; parameter.shape.size()];
        Cuda::read_gradient(parameter, gradients, &mut values).unwrap();
        values
    };
    model.parameters.iter().map(to_vec).collect()
}

#[test]
fn cuda_agrees_with_cpu() {
    let Some(device) = gpu() else { return };
    let one_head = Config::new(24, 24, 2, 1, 19, 70);
    let all_heads = Config::new(16, 24, 2, 4, 130, 70);
    for config in [TINY, TINY.with_own_classifier(), one_head, all_heads] {
        for (sequences, length) in [(2, 1), (2, 11), (2, 37), (1, 64), (2, 70)] {
            let case = Case::new(config, sequences, length);
            let mut model = on(&device, &case);
            for (dropout, teacher) in [(0.0, None), (0.3, None), (0.2, case.teacher())] {
                let options = Options { dropout, seed: 5, teacher };
                let (expected_loss, expected) = case.cpu(&options);
                let mut gradients = model.zero_gradients().unwrap();
                let loss = model.loss_and_gradients(&case.batch(), &options, 1.0, &mut gradients).unwrap();
                let gradients = to_vecs(&model, &mut gradients);
                println!("{config:?} {sequences} x {length} {dropout}: {loss}, CPU {expected_loss}");
                assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss}");
                case.assert_close(&gradients, &expected, 2e-5);
            }
            let logits = model.logits(&case.tokens, sequences, length).unwrap();
            let expected = case.model.logits(&case.tokens, sequences, length).unwrap();
            let worst = logits.iter().zip(&expected).fold(0.0, |max: f32, (a, b)| max.max((a - b).abs()));
            assert!(worst < 1e-4, "{worst}");
            model.matmul_precision = MatmulPrecision::Medium;
            let mut gradients = model.zero_gradients().unwrap();
            let loss = model.loss_and_gradients(&case.batch(), &Options::default(), 1.0, &mut gradients).unwrap();
            let (expected_loss, expected) = case.cpu(&Options::default());
            println!("TF32: {loss}, CPU {expected_loss}");
            assert!((loss - expected_loss).abs() < 2e-3 * expected_loss, "{loss} {expected_loss}");
            let gradients = to_vecs(&model, &mut gradients);
            case.assert_close(&gradients, &expected, 5e-2);
        }
    }
}

#[test]
fn cuda_takes_texts_sixteen_bits_and_activations_again() {
    let Some(device) = gpu() else { return };
    let case = Case::even(Config::new(128, 344, 3, 4, 512, 100).with_kv_heads(2), 2, 90);
    let starts: Vec<u32> = (0..180).map(|i| if i % 90 < 37 { 0 } else { 37 }).collect();
    let batch = Batch { starts: Some(&starts), ..case.batch() };
    let options = Options { dropout: 0.1, seed: 3, teacher: None };
    let (expected_loss, expected) = case.cpu_of(&batch, &options);
    for (dtype, tolerance) in [(Dtype::Float32, 2e-5), (Dtype::Bfloat16, 5e-2), (Dtype::Float16, 1e-2)] {
        let [kept, again] = [false, true].map(|recompute| {
            let mut model = on(&device, &case);
            (model.dtype, model.recompute) = (dtype, recompute);
            model.loss_scale = if dtype == Dtype::Float16 { 1024.0 } else { 1.0 };
            let mut gradients = model.zero_gradients().unwrap();
            let loss = model.loss_and_gradients(&batch, &options, 1.0, &mut gradients).unwrap();
            let gradients = to_vecs(&model, &mut gradients);
            println!("{dtype:?} {recompute}: {loss}, CPU {expected_loss}");
            assert!((loss - expected_loss).abs() < tolerance / 2.0 * expected_loss, "{loss} {expected_loss}");
            case.assert_close(&gradients, &expected, tolerance);
            (loss, gradients)
        });
        assert!(kept == again, "{dtype:?}");
    }
}

/// The sum over a single rank is what it was, bit for bit.
#[test]
fn cuda_sums_gradients_by_nccl() {
    let Some(device) = gpu() else { return };
    if let Err(e) = Nccl::load() {
        ::tests::shared::skip(&e);
        return;
    }
    let all = Nccl::connect(&device, &Nccl::id().unwrap(), 0, 1).unwrap();
    let case = Case::new(TINY, 2, 37);
    let model = on(&device, &case);
    let mut gradients = model.zero_gradients_of(3).unwrap();
    model.loss_and_gradients(&case.batch(), &Options::default(), 0.7, &mut gradients).unwrap();
    let before = to_vecs(&model, &mut gradients);
    all.sum(&mut gradients).unwrap();
    assert!(before.iter().flatten().any(|x| *x != 0.0) && before == to_vecs(&model, &mut gradients));
}

#[test]
fn cuda_follows_the_cpu() {
    let Some(device) = gpu() else { return };
    for (dtype, tolerance) in [(Dtype::Float32, 1e-5), (Dtype::Bfloat16, 1e-2), (Dtype::Float16, 1e-2)] {
        follow_the_cpu(&device, dtype, tolerance);
    }
}

fn follow_the_cpu(device: &Cuda, dtype: Dtype, tolerance: f32) {
    let mut case = Reference::case(Reference::GROUPED);
    let mut model = on(device, &case);
    model.dtype = dtype;
    model.loss_scale = if dtype == Dtype::Float16 { 1024.0 } else { 1.0 };
    let mut adam = AdamW::new(&case.model, [0.9, 0.95], 0.1).unwrap();
    let mut gpu_adam = AdamW::new(&model, [0.9, 0.95], 0.1).unwrap();
    for step in 0..10 {
        case.next_batch(step);
        let (mut gradients, mut gpu_gradients) =
            (case.model.zero_gradients().unwrap(), model.zero_gradients().unwrap());
        let (mut loss, mut gpu_loss) = (0.0, 0.0);
        for seed in 0..2 {
            let options = Options { dropout: 0.1, seed, teacher: None };
            let batch = case.batch();
            loss += case.model.loss_and_gradients(&batch, &options, 0.5, &mut gradients).unwrap() / 2.0;
            gpu_loss += model.loss_and_gradients(&batch, &options, 0.5, &mut gpu_gradients).unwrap() / 2.0;
        }
        let norm = clip_gradients(&case.model, &mut gradients, 0.1).unwrap();
        let gpu_norm = clip_gradients(&model, &mut gpu_gradients, 0.1).unwrap();
        adam.step(&mut case.model, 1e-2, &mut gradients).unwrap();
        gpu_adam.step(&mut model, 1e-2, &mut gpu_gradients).unwrap();
        println!("{dtype:?}, step {step}: loss {gpu_loss}, CPU {loss}; norm {gpu_norm}, CPU {norm}");
        assert!((gpu_loss - loss).abs() < tolerance * loss && (gpu_norm - norm).abs() < 10.0 * tolerance * norm);
    }
    // What is read of the GPU is what it computes with.
    let read = Llama::from_slices(model.config, &Cpu::default(), &model.to_vecs().unwrap()).unwrap();
    let [loss, gpu_loss] = [read.loss(&case.batch()).unwrap(), model.loss(&case.batch()).unwrap()];
    assert!((gpu_loss - loss).abs() < tolerance * loss, "{gpu_loss} {loss}");
    let [m, v] = gpu_adam.moments(&model).unwrap();
    let mut resumed = AdamW::new(&model, [0.9, 0.95], 0.1).unwrap();
    resumed.set_moments(&model, [&m, &v], 10).unwrap();
    assert_eq!(resumed.moments(&model).unwrap(), [m, v]);
}
