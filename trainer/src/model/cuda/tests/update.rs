//! The update by its kernels, to the bit that of the CPU.

use super::shim::get;
use super::*;
use crate::model::Backend;
use crate::model::cuda::gpu::Matrix;
use crate::model::llama::normal;

/// Sizes that no block divides, tied and own classifiers, and matrices of a single row.
const ODD: [Config; 3] =
    [TINY, Config::new(36, 25, 2, 2, 19, 150).with_own_classifier(), Config::new(8, 1, 3, 2, 21, 9)];

/// Three updates of weights, moments and copies, by gradients that are clipped and counted in
/// eighths.
#[test]
fn updates_are_those_of_the_cpu() {
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
        let Some(shim) = Shim::new(Kind::new(8, dtype, 9), 2, |source| source) else { return }; // heads play no part
        ODD.into_iter().for_each(|config| updates_follow(&shim, config, dtype));
    }
}

fn updates_follow(shim: &Shim, config: Config, dtype: Dtype) {
    let mut model = Case::new(config, 1, 1).model;
    let emulated = Emulated::new(shim, How { dtype, loss_scale: 8.0, recompute: false }, &model).unwrap();
    let mut adam = AdamW::new(&model, [0.9, 0.95], 0.1).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..3 {
        let mut gradients = model.zero_gradients().unwrap();
        let at = Parameters::new(&config, emulated.gradients.address());
        for parameter in &model.parameters {
            let values = normal(&mut rng, 0.1, parameter.shape.size());
            Cpu::write_gradient(parameter, &mut gradients, &values).unwrap();
            let eighths: Vec<f32> = values.iter().map(|x| 8.0 * x).collect();
            shim.upload(at.address(&parameter.shape), &eighths).unwrap();
        }
        let norm = emulated.norm().unwrap();
        let expected = clip_gradients(&model, &mut gradients, 0.5).unwrap();
        assert!((norm - expected).abs() < 1e-6 * expected, "{norm} {expected}");
        adam.step(&mut model, 1e-2, &mut gradients).unwrap();
        emulated.update(&adam.rates(1e-2), clip_factor(expected, 0.5).unwrap()).unwrap();
    }
    let weights = model.to_vecs().unwrap();
    assert!(emulated.read(&emulated.weights) == weights, "{config:?}");
    assert!(emulated.moments.each_ref().map(|moment| emulated.read(moment)) == adam.moments(&model).unwrap());
    for (shape, weights) in shapes(&config).unwrap().iter().zip(&weights) {
        let as_products_read = Matrix::new(emulated.at().address(shape), shape.cols, dtype);
        for (i, &weight) in weights.iter().enumerate().filter(|_| !shape.is_norm()) {
            let expected = match dtype {
                Dtype::Float32 => weight,
                Dtype::Bfloat16 => half::bf16::from_f32(weight).into(),
                Dtype::Float16 => half::f16::from_f32(weight).into(),
            };
            assert_eq!(get(&as_products_read, i / shape.cols, i % shape.cols), expected, "{shape:?} {i}");
        }
    }
}

/// Numbers that fill no block, one, and several with turns of different length.
#[test]
fn squares_are_summed() {
    let Some(shim) = Shim::new(Kind::new(8, Dtype::Float32, 9), 5, |source| source) else { return };
    for n in [1, 127, 128, 129, 2048, 2049, 5000] {
        let x = normal(&mut fastrand::Rng::with_seed(1), 1.0, n);
        let (array, memory) = (shim.alloc(n).unwrap(), shim.alloc(sums(n)).unwrap());
        shim.upload(array.address(), &x).unwrap();
        let sum = sum_of_squares(&shim, array.address(), n, memory.address()).unwrap();
        let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((sum - expected).abs() < 1e-6 * expected, "{n}: {sum} {expected}");
    }
}
