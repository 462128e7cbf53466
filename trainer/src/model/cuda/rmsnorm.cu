// The residual stream and its norms: a warp has a row, a block has four.

#define ROWS_PER_BLOCK (THREADS / WARP)

template <int N>
__device__ inline void norm_row(float *x_out, real *xb, float *inverse_rms, const float *x, const real *delta,
                                const float *weight, int dim, float eps, const Dropout &dropout, u32 key) {
    const int lane = threadIdx.x % WARP;
    float squares = 0;
    for (int i = N * lane; i < dim; i += N * WARP) {
        Some<float, N> values = some<N>(x + i);
        if (delta) {
            const Some<real, N> deltas = some<N>(delta + i);
#pragma unroll
            for (int j = 0; j < N; j++) values.at[j] += deltas.at[j] * dropout.factor(key, i + j);
            some<N>(x_out + i) = values;
        }
#pragma unroll
        for (int j = 0; j < N; j++) squares += values.at[j] * values.at[j];
    }
    const float inverse = 1.0f / sqrtf(lane_sum(squares, WARP) / dim + eps);
    if (lane == 0) *inverse_rms = inverse;
    const float *from = delta ? x_out : x; // each lane reads what it wrote itself
    for (int i = N * lane; i < dim; i += N * WARP) {
        const Some<float, N> values = some<N>(from + i), weights = some<N>(weight + i);
        Some<real, N> to;
#pragma unroll
        for (int j = 0; j < N; j++) to.at[j] = values.at[j] * inverse * weights.at[j];
        some<N>(xb + i) = to;
    }
}

// x_out = x + dropout(delta); xb = rmsnorm(x_out). Without delta x_out is not written. x_out may be
// x.
extern "C" __global__ void residual_rmsnorm(float *x_out, real *xb, float *inverse_rms, const float *x,
                                            const real *delta, const float *weight, int rows, int dim, float eps,
                                            Dropout dropout) {
    const int row = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (row >= rows) return; // the whole warp
    const u64 at = (u64)row * dim;
    const u32 key = dropout.row(row);
    x_out += at, xb += at, inverse_rms += row, x += at;
    if (delta) delta += at;
    dim % 4 == 0 ? norm_row<4>(x_out, xb, inverse_rms, x, delta, weight, dim, eps, dropout, key)
                 : norm_row<1>(x_out, xb, inverse_rms, x, delta, weight, dim, eps, dropout, key);
}

template <int N>
__device__ inline void norm_row_backward(float *dx, const real *d_xb, const float *x, float inverse,
                                         const float *weight, int dim, bool add) {
    const int lane = threadIdx.x % WARP;
    float dot = 0;
    for (int i = N * lane; i < dim; i += N * WARP) {
        const Some<real, N> ds = some<N>(d_xb + i);
        const Some<float, N> xs = some<N>(x + i), weights = some<N>(weight + i);
#pragma unroll
        for (int j = 0; j < N; j++) dot += ds.at[j] * weights.at[j] * xs.at[j];
    }
    const float factor = lane_sum(dot, WARP) * inverse * inverse / dim;
    for (int i = N * lane; i < dim; i += N * WARP) {
        const Some<real, N> ds = some<N>(d_xb + i);
        const Some<float, N> xs = some<N>(x + i), weights = some<N>(weight + i);
        Some<float, N> to = {};
        if (add) to = some<N>(dx + i);
#pragma unroll
        for (int j = 0; j < N; j++) to.at[j] += inverse * (ds.at[j] * weights.at[j] - xs.at[j] * factor);
        some<N>(dx + i) = to;
    }
}

// dx = or += the gradient of rmsnorm's input x, given that of its output.
extern "C" __global__ void rmsnorm_backward(float *dx, const real *d_xb, const float *x, const float *inverse_rms,
                                            const float *weight, int rows, int dim, int add) {
    const int row = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (row >= rows) return;
    const u64 at = (u64)row * dim;
    const float inverse = inverse_rms[row];
    dim % 4 == 0 ? norm_row_backward<4>(dx + at, d_xb + at, x + at, inverse, weight, dim, add)
                 : norm_row_backward<1>(dx + at, d_xb + at, x + at, inverse, weight, dim, add);
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
