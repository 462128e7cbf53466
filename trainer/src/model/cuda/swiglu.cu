// SwiGLU: silu(h1) · h3. A block has a row; h13 is (rows, 2 * hidden_dim), h1 and h3 side by side.

template <int N>
__device__ inline void swiglu_row(real *hb, const real *h1, const real *h3, int hidden_dim) {
    for (int i = N * threadIdx.x; i < hidden_dim; i += N * THREADS) {
        const Some<real, N> xs = some<N>(h1 + i), ys = some<N>(h3 + i);
        Some<real, N> to;
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float x = xs.at[j];
            to.at[j] = x / (1 + expf(-x)) * ys.at[j];
        }
        some<N>(hb + i) = to;
    }
}

extern "C" __global__ void swiglu(real *hb, const real *h13, int hidden_dim) {
    const real *h1 = h13 + (u64)blockIdx.x * 2 * hidden_dim, *h3 = h1 + hidden_dim;
    real *to = hb + (u64)blockIdx.x * hidden_dim;
    hidden_dim % WIDE == 0 ? swiglu_row<WIDE>(to, h1, h3, hidden_dim) : swiglu_row<1>(to, h1, h3, hidden_dim);
}

template <int N>
__device__ inline void swiglu_row_backward(real *h1, real *h3, real *d_hb, int hidden_dim) {
    for (int i = N * threadIdx.x; i < hidden_dim; i += N * THREADS) {
        Some<real, N> xs = some<N>(h1 + i), ys = some<N>(h3 + i), ds = some<N>(d_hb + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float x = xs.at[j], y = ys.at[j], d = ds.at[j];
            const float sigmoid = 1 / (1 + expf(-x)), silu = x * sigmoid;
            xs.at[j] = d * y * sigmoid * (1 + x - silu);
            ys.at[j] = d * silu;
            ds.at[j] = silu * y;
        }
        some<N>(h1 + i) = xs;
        some<N>(h3 + i) = ys;
        some<N>(d_hb + i) = ds;
    }
}

// Turns h1 and h3 into their gradients, and d_hb into hb, which the gradient of w2 needs.
extern "C" __global__ void swiglu_backward(real *h13, real *d_hb, int hidden_dim) {
    real *h1 = h13 + (u64)blockIdx.x * 2 * hidden_dim, *h3 = h1 + hidden_dim;
    real *d = d_hb + (u64)blockIdx.x * hidden_dim;
    hidden_dim % WIDE == 0 ? swiglu_row_backward<WIDE>(h1, h3, d, hidden_dim)
                           : swiglu_row_backward<1>(h1, h3, d, hidden_dim);
}
