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
