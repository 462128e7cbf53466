//! Computes Llama 2 in float64, one token at a time: slow and obvious, to compare with. It is
//! written from docs/FORMAT.md and the papers, and uses no line of infer-core.

/// Hyperparameters and weights of a version 0 file.
pub struct Oracle {
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    tok_emb: Vec<f64>,
    rms_att: Vec<f64>,
    wq: Vec<f64>,
    wk: Vec<f64>,
    wv: Vec<f64>,
    wo: Vec<f64>,
    rms_ffn: Vec<f64>,
    w1: Vec<f64>,
    w2: Vec<f64>,
    w3: Vec<f64>,
    rms_final: Vec<f64>,
    wcls: Vec<f64>,
    /// Angle per position of each pair of a head.
    pub frequencies: Vec<f64>,
    /// Added to the mean square in rmsnorm.
    pub norm_eps: f64,
}

impl Oracle {
    /// Reads a version 0 file.
    ///
    /// # Panics
    /// When the file is not of version 0.
    pub fn read(file: &[u8]) -> Oracle {
        let field = |i: usize| i32::from_le_bytes(file[4 * i..4 * i + 4].try_into().unwrap());
        let [dim, hidden_dim, n_layers, n_heads, n_kv_heads] = [0, 1, 2, 3, 4].map(|i| field(i) as usize);
        let (vocab_size, seq_len) = (field(5).unsigned_abs() as usize, field(6) as usize);
        let kv_dim = dim / n_heads * n_kv_heads;
        let mut weights = file[28..].chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
        let mut take = |n: usize| -> Vec<f64> { weights.by_ref().take(n).collect() };
        let tok_emb = take(vocab_size * dim);
        let rms_att = take(n_layers * dim);
        let wq = take(n_layers * dim * dim);
        let wk = take(n_layers * kv_dim * dim);
        let wv = take(n_layers * kv_dim * dim);
        let wo = take(n_layers * dim * dim);
        let rms_ffn = take(n_layers * dim);
        let w1 = take(n_layers * hidden_dim * dim);
        let w2 = take(n_layers * dim * hidden_dim);
        let w3 = take(n_layers * hidden_dim * dim);
        let rms_final = take(dim);
        take(seq_len * (dim / n_heads)); // freq_cis, not used
        let wcls = if field(5) < 0 { take(vocab_size * dim) } else { tok_emb.clone() };
        assert_eq!(wcls.len(), vocab_size * dim, "the file is too short");
        Oracle {
            dim,
            hidden_dim,
            n_layers,
            n_heads,
            n_kv_heads,
            tok_emb,
            rms_att,
            wq,
            wk,
            wv,
            wo,
            rms_ffn,
            w1,
            w2,
            w3,
            rms_final,
            wcls,
            frequencies: frequencies(dim / n_heads, 10000.0),
            norm_eps: 1e-5,
        }
    }

    /// Logits after each of the tokens.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let (dim, hidden_dim) = (self.dim, self.hidden_dim);
        let head_size = dim / self.n_heads;
        let kv_dim = head_size * self.n_kv_heads;
        // keys[l][t] and values[l][t] have kv_dim elements
        let mut keys = vec![Vec::<Vec<f64>>::new(); self.n_layers];
        let mut values = vec![Vec::<Vec<f64>>::new(); self.n_layers];
        let mut all = Vec::new();
        for (pos, &token) in tokens.iter().enumerate() {
            let mut x = self.tok_emb[token as usize * dim..][..dim].to_vec();
            for l in 0..self.n_layers {
                let y = rmsnorm(&x, &self.rms_att[l * dim..][..dim], self.norm_eps);
                let q = rope(matvec(&self.wq[l * dim * dim..], &y, dim), pos, &self.frequencies);
                keys[l].push(rope(matvec(&self.wk[l * kv_dim * dim..], &y, kv_dim), pos, &self.frequencies));
                values[l].push(matvec(&self.wv[l * kv_dim * dim..], &y, kv_dim));
                let mut y = vec![0.0; dim];
                for head in 0..self.n_heads {
                    let kv_head = head / (self.n_heads / self.n_kv_heads) * head_size;
                    let q = &q[head * head_size..][..head_size];
                    let scores: Vec<f64> = keys[l]
                        .iter()
                        .map(|k| dot(q, &k[kv_head..][..head_size]) / (head_size as f64).sqrt())
                        .collect();
                    let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                    for (score, value) in scores.iter().zip(&values[l]) {
                        for i in 0..head_size {
                            y[head * head_size + i] += (score - max).exp() / sum * value[kv_head + i];
                        }
                    }
                }
                add(&mut x, &matvec(&self.wo[l * dim * dim..], &y, dim));
                let y = rmsnorm(&x, &self.rms_ffn[l * dim..][..dim], self.norm_eps);
                let gate = matvec(&self.w1[l * hidden_dim * dim..], &y, hidden_dim);
                let up = matvec(&self.w3[l * hidden_dim * dim..], &y, hidden_dim);
                let h: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(&mut x, &matvec(&self.w2[l * dim * hidden_dim..], &h, dim));
            }
            all.push(matvec(&self.wcls, &rmsnorm(&x, &self.rms_final, self.norm_eps), self.wcls.len() / dim));
        }
        all
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The first `rows` rows of w times x.
fn matvec(w: &[f64], x: &[f64], rows: usize) -> Vec<f64> {
    w.chunks_exact(x.len()).take(rows).map(|w| dot(w, x)).collect()
}

fn rmsnorm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// The angles per position of a base, without scaling.
pub fn frequencies(head_size: usize, theta: f64) -> Vec<f64> {
    (0..head_size / 2).map(|i| theta.powf(-2.0 * i as f64 / head_size as f64)).collect()
}

fn rope(mut x: Vec<f64>, pos: usize, frequencies: &[f64]) -> Vec<f64> {
    for i in (0..x.len()).step_by(2) {
        let angle = pos as f64 * frequencies[i / 2 % frequencies.len()];
        let (v0, v1) = (x[i], x[i + 1]);
        x[i] = v0 * angle.cos() - v1 * angle.sin();
        x[i + 1] = v0 * angle.sin() + v1 * angle.cos();
    }
    x
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
