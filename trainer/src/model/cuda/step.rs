//! A step on a GPU, from tokens to losses and gradients.

use infer_core::Config;

use super::gpu::{Arg, Gpu, Matrix, Product};
use super::kernels::{THREADS, WARP};
use super::layout::{LayerParameters, Layout, Parameters, Sizes};
use crate::model::batch::{Batch, IGNORED, Options};
use crate::model::dropout::{Dropout, Place};
use crate::model::precision::Dtype;
use crate::model::rope::rope_tables;

/// A step in progress.
pub struct Step<'a, G: Gpu> {
    pub gpu: &'a G,
    pub sizes: Sizes,
    pub layout: Layout,
    pub weights: Parameters,
    pub options: Options<'a>,
    /// Factor of the gradients.
    pub scale: f32,
}

impl<G: Gpu> Step<'_, G> {
    /// Computes the sum of the losses of a batch of the step's sizes; adds the gradients of their
    /// mean, times `scale`, to `gradients`, which are f32.
    pub fn loss(&self, batch: &Batch, gradients: Option<&Parameters>) -> Result<f64, G::Error> {
        if let Some(starts) = batch.starts {
            self.gpu.upload(self.layout.texts, starts)?;
        }
        self.forward(batch.tokens)?;
        self.gpu.upload(self.layout.targets, batch.targets)?;
        self.losses(batch, gradients)?;
        if let Some(gradients) = gradients {
            self.backward(batch.tokens, gradients)?;
        }
        let mut losses = vec![0.0; batch.tokens.len()];
        self.gpu.download(self.layout.losses, &mut losses)?;
        Ok(losses.into_iter().map(f64::from).sum())
    }

    /// Computes the logits of every position, in f32. They go where a teacher's would be.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, G::Error> {
        self.forward(tokens)?;
        let vocab_size = self.sizes.config.vocab_size;
        let mut logits = vec![0.0; tokens.len() * vocab_size];
        let out = Matrix::new(self.layout.taught, vocab_size, Dtype::Float32);
        for (i, part) in logits.chunks_mut(self.sizes.rows() * vocab_size).enumerate() {
            self.classify(out, i * self.sizes.rows(), part.len() / vocab_size)?;
            self.gpu.download(out.address, part)?;
        }
        Ok(logits)
    }

    /// From tokens to the norm before the classifier.
    fn forward(&self, tokens: &[u32]) -> Result<(), G::Error> {
        let (l, Config { n_layers, dim, .. }) = (&self.layout, self.sizes.config);
        self.gpu.upload(l.tokens, tokens)?;
        let (cos, sin) = rope_tables(&self.sizes.config, self.sizes.length);
        self.gpu.upload(l.cos, &cos)?;
        self.gpu.upload(l.sin, &sin)?;
        let dropout = self.dropout(Place::Embedding, 0);
        let [x, table, tokens_at] = [l.layers[0].x, self.weights.tok_emb, l.tokens].map(Arg::Address);
        let args = [x, table, tokens_at, Arg::int(dim), dropout];
        self.gpu.launch("embedding", [tokens.len(), 1, 1], &args)?;
        self.norm_of_input(0)?;
        for i in 0..n_layers {
            self.attend(i)?;
            self.feed_forward(i)?;
        }
        Ok(())
    }

    /// xb = the norm of x
    fn norm_of_input(&self, i: usize) -> Result<(), G::Error> {
        let a = &self.layout.layers[i];
        self.norm([a.x, a.xb, a.inverse_att], a.x, 0, self.weights.layers[i].rms_att, Arg::dropout(None))
    }

    /// x2 = x + attention(xb), and its norm
    fn attend(&self, i: usize) -> Result<(), G::Error> {
        let Config { dim, n_heads, .. } = self.sizes.config;
        let (a, w, width) = (&self.layout.layers[i], &self.weights.layers[i], self.sizes.qkv());
        self.linear(self.real(a.qkv, width), self.real(a.xb, dim), w.wqkv, [width, dim])?;
        self.rope(a.qkv, 1.0)?;
        let mut args = [a.att, a.lse, a.qkv, self.texts()].map(Arg::Address).to_vec();
        args.extend(self.heads());
        args.push(self.dropout(Place::Attention, i));
        self.gpu.launch("attention", self.attention_grid(n_heads), &args)?;
        self.linear(self.real(self.layout.y, dim), self.real(a.att, dim), w.wo, [dim, dim])?;
        let dropout = self.dropout(Place::AttentionOut, i);
        self.norm([a.x2, a.xb2, a.inverse_ffn], a.x, self.layout.y, w.rms_ffn, dropout)
    }

    /// h1 and h3, of xb2
    fn gate(&self, i: usize) -> Result<(), G::Error> {
        let Config { dim, hidden_dim, .. } = self.sizes.config;
        let a = &self.layout.layers[i];
        let out = self.real(a.h13, 2 * hidden_dim);
        self.linear(out, self.real(a.xb2, dim), self.weights.layers[i].w13, [2 * hidden_dim, dim])
    }

    /// The next layer's x = x2 + swiglu(xb2), and its norm
    fn feed_forward(&self, i: usize) -> Result<(), G::Error> {
        let Config { dim, hidden_dim, n_layers, .. } = self.sizes.config;
        let (l, a, w) = (&self.layout, &self.layout.layers[i], &self.weights.layers[i]);
        self.gate(i)?;
        let args = [Arg::Address(l.hb), Arg::Address(a.h13), Arg::int(hidden_dim)];
        self.gpu.launch("swiglu", [self.sizes.positions(), 1, 1], &args)?;
        self.linear(self.real(l.y, dim), self.real(l.hb, hidden_dim), w.w2, [dim, hidden_dim])?;
        let (out, weight) = if i + 1 < n_layers {
            let next = &l.layers[i + 1];
            ([next.x, next.xb, next.inverse_att], self.weights.layers[i + 1].rms_att)
        } else {
            ([l.x, l.xb, l.inverse], self.weights.rms_final)
        };
        self.norm(out, a.x2, l.y, weight, self.dropout(Place::FfnOut, i))
    }

    /// out = the logits of `rows` positions from `first` on
    fn classify(&self, out: Matrix, first: usize, rows: usize) -> Result<(), G::Error> {
        let Config { dim, vocab_size, .. } = self.sizes.config;
        self.gpu.multiply(&Product {
            size: [rows, vocab_size, dim],
            out,
            a: self.real(self.layout.xb, dim).skip_rows(first),
            b: self.real(self.weights.wcls, dim).t(),
            add: false,
        })
    }

    /// Losses; with gradients, also that of the norm before the classifier in d_xb
    fn losses(&self, batch: &Batch, gradients: Option<&Parameters>) -> Result<(), G::Error> {
        let (l, Config { dim, vocab_size, .. }) = (&self.layout, self.sizes.config);
        let counted = batch.targets.iter().filter(|t| **t != IGNORED).count();
        let n = batch.tokens.len();
        for first in (0..n).step_by(self.sizes.rows()) {
            let rows = self.sizes.rows().min(n - first);
            let logits = self.real(l.logits, vocab_size);
            self.classify(logits, first, rows)?;
            let (mut taught, mut weight, mut temperature) = (0, 0.0, 1.0);
            if let Some(teacher) = self.options.teacher {
                (taught, weight, temperature) = (l.taught, teacher.weight, teacher.temperature);
                self.gpu.upload(taught, &teacher.logits[first * vocab_size..][..rows * vocab_size])?;
            }
            let args = [
                Arg::Address(l.losses + 4 * first as u64),
                Arg::Address(l.logits),
                Arg::Address(l.targets + 4 * first as u64),
                Arg::Address(taught),
                Arg::int(vocab_size),
                Arg::F32(self.scale / counted as f32),
                Arg::F32(weight),
                Arg::F32(temperature),
            ];
            self.gpu.launch("loss", [rows, 1, 1], &args)?;
            if let Some(gradients) = gradients {
                let [xb, d_xb] = [l.xb, l.d_xb].map(|x| self.real(x, dim).skip_rows(first));
                self.input(d_xb, logits, self.weights.wcls, [rows, vocab_size, dim])?;
                self.weight(gradients.wcls, logits, xb, [rows, vocab_size, dim])?;
            }
        }
        Ok(())
    }

    /// From d_xb to the gradients of all parameters
    fn backward(&self, tokens: &[u32], gradients: &Parameters) -> Result<(), G::Error> {
        let (l, Config { dim, n_layers, .. }) = (&self.layout, self.sizes.config);
        self.norm_backward([l.x, l.inverse], self.weights.rms_final, gradients.rms_final, false)?;
        for i in (0..n_layers).rev() {
            // The last layer's activations are still there.
            if self.sizes.recompute && i + 1 < n_layers {
                self.norm_of_input(i)?;
                self.attend(i)?;
                self.gate(i)?;
            }
            self.feed_forward_backward(i, &gradients.layers[i])?;
            self.attend_backward(i, &gradients.layers[i])?;
        }
        let (order, starts) = by_token(tokens);
        self.gpu.upload(l.order, &order)?;
        self.gpu.upload(l.starts, &starts)?;
        let mut args = [gradients.tok_emb, l.dx, l.tokens, l.order, l.starts].map(Arg::Address).to_vec();
        args.extend([Arg::int(dim), self.dropout(Place::Embedding, 0)]);
        self.gpu.launch("embedding_backward", [starts.len() - 1, dim.div_ceil(WARP), 1], &args)
    }

    /// dx, from that of the layer's output to that of x2
    fn feed_forward_backward(&self, i: usize, d: &LayerParameters) -> Result<(), G::Error> {
        let Config { dim, hidden_dim, .. } = self.sizes.config;
        let (l, a, w, n) = (&self.layout, &self.layout.layers[i], &self.weights.layers[i], self.sizes.positions());
        let dy = self.dropped(Place::FfnOut, i)?;
        let (hb, h13) = (self.real(l.hb, hidden_dim), self.real(a.h13, 2 * hidden_dim));
        self.input(hb, dy, w.w2, [n, dim, hidden_dim])?;
        let args = [Arg::Address(a.h13), Arg::Address(l.hb), Arg::int(hidden_dim)];
        self.gpu.launch("swiglu_backward", [n, 1, 1], &args)?;
        self.weight(d.w2, dy, hb, [n, dim, hidden_dim])?;
        self.weight(d.w13, h13, self.real(a.xb2, dim), [n, 2 * hidden_dim, dim])?;
        self.input(self.real(l.d_xb, dim), h13, w.w13, [n, 2 * hidden_dim, dim])?;
        self.norm_backward([a.x2, a.inverse_ffn], w.rms_ffn, d.rms_ffn, true)
    }

    /// dx, from that of x2 to that of x
    fn attend_backward(&self, i: usize, d: &LayerParameters) -> Result<(), G::Error> {
        let Config { dim, n_heads, n_kv_heads, .. } = self.sizes.config;
        let (l, a, w, n) = (&self.layout, &self.layout.layers[i], &self.weights.layers[i], self.sizes.positions());
        let dy = self.dropped(Place::AttentionOut, i)?;
        self.weight(d.wo, dy, self.real(a.att, dim), [n, dim, dim])?;
        self.input(self.real(l.d_xb, dim), dy, w.wo, [n, dim, dim])?;
        let dropout = self.dropout(Place::Attention, i);
        let mut args = [l.d_qkv, l.delta, a.qkv, a.att, l.d_xb, a.lse, self.texts()].map(Arg::Address).to_vec();
        args.extend(self.heads());
        args.push(dropout);
        self.gpu.launch("attention_backward_q", self.attention_grid(n_heads), &args)?;
        let mut args = [l.d_qkv, a.qkv, l.d_xb, a.lse, l.delta, self.texts()].map(Arg::Address).to_vec();
        args.extend(self.heads());
        args.push(dropout);
        self.gpu.launch("attention_backward_kv", self.attention_grid(n_kv_heads), &args)?;
        self.rope(l.d_qkv, -1.0)?;
        let (width, d_qkv) = (self.sizes.qkv(), self.real(l.d_qkv, self.sizes.qkv()));
        self.weight(d.wqkv, d_qkv, self.real(a.xb, dim), [n, width, dim])?;
        self.input(self.real(l.d_xb, dim), d_qkv, w.wqkv, [n, width, dim])?;
        self.norm_backward([a.x, a.inverse_att], w.rms_att, d.rms_att, true)
    }

    /// x_out = x + delta, if there is one, and its norm
    fn norm(&self, out: [u64; 3], x: u64, delta: u64, weight: u64, dropout: Arg) -> Result<(), G::Error> {
        let n = self.sizes.positions();
        let mut args = [out[0], out[1], out[2], x, delta, weight].map(Arg::Address).to_vec();
        args.extend([Arg::int(n), Arg::int(self.sizes.config.dim), Arg::F32(self.sizes.config.norm_eps), dropout]);
        self.gpu.launch("residual_rmsnorm", [n.div_ceil(THREADS / WARP), 1, 1], &args)
    }

    /// dx = or += the gradient of a norm's input, given that of its output in d_xb
    fn norm_backward(&self, [x, inverse]: [u64; 2], weight: u64, d: u64, add: bool) -> Result<(), G::Error> {
        let (l, n, dim) = (&self.layout, self.sizes.positions(), self.sizes.config.dim);
        let mut args = [l.parts, l.d_xb, x, inverse].map(Arg::Address).to_vec();
        args.extend([n, dim].map(Arg::int));
        self.gpu.launch("rmsnorm_weight_backward", [dim.div_ceil(WARP), self.sizes.parts(), 1], &args)?;
        let args = [Arg::Address(d), Arg::Address(l.parts), Arg::int(self.sizes.parts()), Arg::int(dim)];
        self.gpu.launch("add_parts", [dim.div_ceil(THREADS), 1, 1], &args)?;
        let mut args = [l.dx, l.d_xb, x, inverse, weight].map(Arg::Address).to_vec();
        args.extend([n, dim, usize::from(add)].map(Arg::int));
        self.gpu.launch("rmsnorm_backward", [n.div_ceil(THREADS / WARP), 1, 1], &args)
    }

    /// dx behind the dropout at a place, in the step's format
    fn dropped(&self, place: Place, layer: usize) -> Result<Matrix, G::Error> {
        let (l, n, dim) = (&self.layout, self.sizes.positions(), self.sizes.config.dim);
        if self.options.dropout == 0.0 && self.sizes.dtype == Dtype::Float32 {
            return Ok(self.real(l.dx, dim));
        }
        let args = [Arg::Address(l.y), Arg::Address(l.dx), Arg::int(dim), self.dropout(place, layer)];
        self.gpu.launch("drop", [n, 1, 1], &args)?;
        Ok(self.real(l.y, dim))
    }

    /// Rotates queries and keys by `sign` times their angles.
    fn rope(&self, qkv: u64, sign: f32) -> Result<(), G::Error> {
        let config = self.sizes.config;
        let mut args = [qkv, self.layout.cos, self.layout.sin].map(Arg::Address).to_vec();
        args.extend([self.sizes.length, self.sizes.qkv(), config.n_heads + config.n_kv_heads].map(Arg::int));
        args.push(Arg::F32(sign));
        self.gpu.launch("rope", [self.sizes.positions(), 1, 1], &args)
    }

    /// Where texts begin, 0 if each window is one.
    fn texts(&self) -> u64 {
        if self.sizes.texts { self.layout.texts } else { 0 }
    }

    fn heads(&self) -> [Arg; 3] {
        [self.sizes.length, self.sizes.config.n_heads, self.sizes.config.n_kv_heads].map(Arg::int)
    }

    fn attention_grid(&self, heads: usize) -> [usize; 3] {
        [self.sizes.length.div_ceil(self.gpu.kind().attention_rows()), heads, self.sizes.sequences]
    }

    fn dropout(&self, place: Place, layer: usize) -> Arg {
        Arg::dropout(Dropout::new(self.options.dropout, self.options.seed, place, layer))
    }

    /// A matrix in the step's format
    fn real(&self, address: u64, stride: usize) -> Matrix {
        Matrix::new(address, stride, self.sizes.dtype)
    }

    /// y (positions, rows) = x · weightᵀ, of a weight (rows, cols)
    fn linear(&self, y: Matrix, x: Matrix, weight: u64, [rows, cols]: [usize; 2]) -> Result<(), G::Error> {
        let size = [self.sizes.positions(), rows, cols];
        self.gpu.multiply(&Product { size, out: y, a: x, b: self.real(weight, cols).t(), add: false })
    }

    /// dx (n, cols) = dy (n, rows) · weight (rows, cols)
    fn input(&self, dx: Matrix, dy: Matrix, weight: u64, [n, rows, cols]: [usize; 3]) -> Result<(), G::Error> {
        let b = self.real(weight, cols);
        self.gpu.multiply(&Product { size: [n, cols, rows], out: dx, a: dy, b, add: false })
    }

    /// d (rows, cols) += dyᵀ · x in f32, of dy (n, rows) and x (n, cols)
    fn weight(&self, d: u64, dy: Matrix, x: Matrix, [n, rows, cols]: [usize; 3]) -> Result<(), G::Error> {
        let out = Matrix::new(d, cols, Dtype::Float32);
        self.gpu.multiply(&Product { size: [rows, cols, n], out, a: dy.t(), b: x, add: true })
    }
}

/// Positions in the order of their tokens, and where each token that occurs begins; then the end.
fn by_token(tokens: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
    order.sort_by_key(|i| tokens[*i as usize]); // stable, so that the sums have one order
    let first = |i: &usize| *i == 0 || tokens[order[*i] as usize] != tokens[order[i - 1] as usize];
    let mut starts: Vec<u32> = (0..order.len()).filter(first).map(|i| i as u32).collect();
    starts.push(tokens.len() as u32);
    (order, starts)
}
