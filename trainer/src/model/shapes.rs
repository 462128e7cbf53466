//! The tensors of a model.

use infer_core::Config;
use infer_core::format::TensorName;

/// Name, layer, rows and columns of every parameter, in the order of [`Llama::parameters`]: that of
/// llama2.c's first format, layer by layer within a stack.
pub fn shapes(config: &Config) -> Vec<(TensorName, usize, usize, usize)> {
    let (dim, hidden_dim, kv_dim) = (config.dim, config.hidden_dim, config.kv_dim());
    let mut shapes = vec![(TensorName::TokEmb, 0, config.vocab_size, dim)];
    for (name, rows, cols) in [
        (TensorName::RmsAtt, 1, dim),
        (TensorName::Wq, dim, dim),
        (TensorName::Wk, kv_dim, dim),
        (TensorName::Wv, kv_dim, dim),
        (TensorName::Wo, dim, dim),
        (TensorName::RmsFfn, 1, dim),
        (TensorName::W1, hidden_dim, dim),
        (TensorName::W2, dim, hidden_dim),
        (TensorName::W3, hidden_dim, dim),
    ] {
        shapes.extend((0..config.n_layers).map(|layer| (name, layer, rows, cols)));
    }
    shapes.push((TensorName::RmsFinal, 0, 1, dim));
    if !config.shared_classifier {
        shapes.push((TensorName::Wcls, 0, config.vocab_size, dim));
    }
    shapes
}
