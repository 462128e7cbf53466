// The residual stream and its norms: a warp has a row, a block has four.

#define ROWS_PER_BLOCK (THREADS / WARP)

// x_out = x + dropout(delta); xb = rmsnorm(x_out). Without delta x_out is not written. x_out may be
// x.
extern "C" __global__ void residual_rmsnorm(float *x_out, real *xb, float *inverse_rms, const float *x,
                                            const real *delta, const float *weight, int rows, int dim, float eps,
                                            Dropout dropout) {
    const int row = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return; // the whole warp
    const u64 at = (u64)row * dim;
    const u32 key = dropout.row(row);
    float squares = 0;
    for (int i = lane; i < dim; i += WARP) {
        float value = x[at + i];
        if (delta) {
            value += delta[at + i] * dropout.factor(key, i);
            x_out[at + i] = value;
        }
        squares += value * value;
    }
    const float inverse = 1.0f / sqrtf(lane_sum(squares, WARP) / dim + eps);
    if (lane == 0) inverse_rms[row] = inverse;
    const float *from = delta ? x_out : x; // each lane reads what it wrote itself
    for (int i = lane; i < dim; i += WARP) xb[at + i] = from[at + i] * inverse * weight[i];
}

// dx = or += the gradient of rmsnorm's input x, given that of its output.
extern "C" __global__ void rmsnorm_backward(float *dx, const real *d_xb, const float *x, const float *inverse_rms,
                                            const float *weight, int rows, int dim, int add) {
    const int row = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const u64 at = (u64)row * dim;
    float dot = 0;
    for (int i = lane; i < dim; i += WARP) dot += d_xb[at + i] * weight[i] * x[at + i];
    const float inverse = inverse_rms[row];
    const float factor = lane_sum(dot, WARP) * inverse * inverse / dim;
    for (int i = lane; i < dim; i += WARP) {
        const float d = inverse * (d_xb[at + i] * weight[i] - x[at + i] * factor);
        dx[at + i] = add ? dx[at + i] + d : d;
    }
}

// parts (gridDim.y, dim) = the sums over a part of the rows each of the weight's gradient.
extern "C" __global__ void rmsnorm_weight_backward(float *parts, const real *d_xb, const float *x,
                                                   const float *inverse_rms, int rows, int dim) {
    __shared__ float sums[THREADS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int col = blockIdx.x * WARP + lane;
    const int size = (rows + gridDim.y - 1) / gridDim.y;
    const int first = blockIdx.y * size, last = min(first + size, rows);
    float sum = 0;
    if (col < dim) {
        for (int row = first + warp; row < last; row += THREADS / WARP) {
            sum += d_xb[(u64)row * dim + col] * x[(u64)row * dim + col] * inverse_rms[row];
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && col < dim) {
        for (int i = 1; i < THREADS / WARP; i++) sum += sums[i * WARP + lane];
        parts[(u64)blockIdx.y * dim + col] = sum;
    }
}

// d_weight += the sum of the parts.
extern "C" __global__ void add_parts(float *d_weight, const float *parts, int n_parts, int dim) {
    const int col = blockIdx.x * THREADS + threadIdx.x;
    if (col >= dim) return;
    float sum = 0;
    for (int i = 0; i < n_parts; i++) sum += parts[(u64)i * dim + col];
    d_weight[col] += sum;
}
