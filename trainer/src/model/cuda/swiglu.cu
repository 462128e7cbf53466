// SwiGLU: silu(h1) · h3.

extern "C" __global__ void swiglu(float *hb, const float *h1, const float *h3, u64 n) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float x = h1[i];
    hb[i] = x / (1 + expf(-x)) * h3[i];
}

// Turns h1 and h3 into their gradients, and d_hb into hb, which the gradient of w2 needs.
extern "C" __global__ void swiglu_backward(float *h1, float *h3, float *d_hb, u64 n) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float x = h1[i], y = h3[i], d = d_hb[i];
    const float sigmoid = 1 / (1 + expf(-x)), silu = x * sigmoid;
    h1[i] = d * y * sigmoid * (1 + x - silu);
    h3[i] = d * silu;
    d_hb[i] = silu * y;
}
