// The update of all weights, which are one array: see `Parameters` in layout.rs.

// out (gridDim.x) = sums of x² over parts of x
extern "C" __global__ void sum_of_squares(float *out, const float *x, u64 n) {
    __shared__ float scratch[THREADS / WARP];
    float sum = 0;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (u64)gridDim.x * THREADS) sum += x[i] * x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// `Rates` of ../rates.rs
struct Rates {
    float beta1, beta2, correction1, correction2, lr, eps, decay;
};

// AdamW of the weights w (norms, then matrices) and their moments m and v, given gradients
// unit · g. Norms do not decay. Matrices have copies, unless those are 0.
extern "C" __global__ void adamw(float *w, float *m, float *v, const float *g, real *copies, u64 norms, u64 matrices,
                                 Rates rates, float unit) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= norms + matrices) return;
    const float gradient = unit * g[i], old = w[i];
    const float moment1 = rates.beta1 * m[i] + (1 - rates.beta1) * gradient;
    const float moment2 = rates.beta2 * v[i] + (1 - rates.beta2) * gradient * gradient;
    const float step = rates.lr * (moment1 * rates.correction1) / (sqrtf(moment2 * rates.correction2) + rates.eps);
    const float updated = old - (step + (i < norms ? 0 : rates.decay) * old);
    m[i] = moment1;
    v[i] = moment2;
    w[i] = updated;
    if (copies && i >= norms) copies[i - norms] = updated;
}
