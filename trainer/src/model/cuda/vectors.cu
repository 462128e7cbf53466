// Passes over vectors.

template <int N>
__device__ inline void drop_row(real *y, const float *x, int cols, const Dropout &dropout, u32 row) {
    for (int i = N * threadIdx.x; i < cols; i += N * THREADS) {
        const Some<float, N> from = some<N>(x + i);
        Some<real, N> to;
#pragma unroll
        for (int j = 0; j < N; j++) to.at[j] = from.at[j] * dropout.factor(row, i + j);
        some<N>(y + i) = to;
    }
}

// y (rows, cols) = dropout(x); a block has a row.
extern "C" __global__ void drop(real *y, const float *x, int cols, Dropout dropout) {
    const u64 at = (u64)blockIdx.x * cols;
    const u32 row = dropout.row(blockIdx.x);
    cols % 4 == 0 ? drop_row<4>(y + at, x + at, cols, dropout, row) : drop_row<1>(y + at, x + at, cols, dropout, row);
}

// y = x
extern "C" __global__ void cast(real *y, const float *x, u64 n) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = x[i];
}
