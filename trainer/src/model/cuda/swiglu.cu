// SwiGLU: silu(h1) · h3. A block has a row; h13 is (rows, 2 * hidden_dim), h1 and h3 side by side.

extern "C" __global__ void swiglu(real *hb, const real *h13, int hidden_dim) {
    const real *h1 = h13 + (u64)blockIdx.x * 2 * hidden_dim, *h3 = h1 + hidden_dim;
    real *to = hb + (u64)blockIdx.x * hidden_dim;
    for (int i = threadIdx.x; i < hidden_dim; i += THREADS) {
        const float x = h1[i];
        to[i] = x / (1 + expf(-x)) * h3[i];
    }
}

// Turns h1 and h3 into their gradients, and d_hb into hb, which the gradient of w2 needs.
extern "C" __global__ void swiglu_backward(real *h13, real *d_hb, int hidden_dim) {
    real *h1 = h13 + (u64)blockIdx.x * 2 * hidden_dim, *h3 = h1 + hidden_dim;
    real *d_out = d_hb + (u64)blockIdx.x * hidden_dim;
    for (int i = threadIdx.x; i < hidden_dim; i += THREADS) {
        const float x = h1[i], y = h3[i], d = d_out[i];
        const float sigmoid = 1 / (1 + expf(-x)), silu = x * sigmoid;
        h1[i] = d * y * sigmoid * (1 + x - silu);
        h3[i] = d * silu;
        d_out[i] = silu * y;
    }
}
