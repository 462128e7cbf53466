// The embedding: a block per position forward, and backward one per token and 32 columns.

extern "C" __global__ void embedding(float *x, const real *table, const u32 *tokens, int dim, Dropout dropout) {
    const int position = blockIdx.x;
    const u32 row = dropout.row(position);
    const real *from = table + (u64)tokens[position] * dim;
    for (int i = threadIdx.x; i < dim; i += THREADS) {
        x[(u64)position * dim + i] = from[i] * dropout.factor(row, i);
    }
}

// d_table += the gradients of the positions that have the token. The host has sorted the positions
// by token: block i has those from starts[i] to starts[i + 1]. Each sum has one order.
extern "C" __global__ void embedding_backward(float *d_table, const float *dx, const u32 *tokens, const u32 *order,
                                              const u32 *starts, int dim, Dropout dropout) {
    __shared__ float sums[THREADS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int col = blockIdx.y * WARP + lane;
    const u32 first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    float sum = 0;
    if (col < dim) {
        for (u32 i = first + warp; i < last; i += THREADS / WARP) {
            const u32 position = order[i];
            sum += dx[(u64)position * dim + col] * dropout.factor(dropout.row(position), col);
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && col < dim) {
        for (int i = 1; i < THREADS / WARP; i++) sum += sums[i * WARP + lane];
        d_table[(u64)tokens[order[first]] * dim + col] += sum;
    }
}
