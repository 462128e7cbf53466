// Passes over vectors.

// y (rows, cols) = dropout(x)
extern "C" __global__ void drop(real *y, const float *x, int rows, int cols, Dropout dropout) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (u64)rows * cols) return;
    y[i] = x[i] * dropout.factor(dropout.row(i / cols), i % cols);
}

// y = x
extern "C" __global__ void cast(real *y, const float *x, u64 n) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = x[i];
}

// sum += *factor · scale · x
extern "C" __global__ void add_scaled(float *sum, const float *factor, float scale, const float *x, u64 n) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) sum[i] += *factor * scale * x[i];
}

// out (gridDim.x) = sums of x² over parts of x
extern "C" __global__ void sum_of_squares(float *out, const float *x, u64 n) {
    __shared__ float scratch[THREADS / WARP];
    float sum = 0;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (u64)gridDim.x * THREADS) sum += x[i] * x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// x *= factor
extern "C" __global__ void scale(float *x, float factor, u64 n) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] *= factor;
}
