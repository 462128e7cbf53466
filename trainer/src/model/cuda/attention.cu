// Attention in f32, whatever the format of its numbers.
//
// SPLIT neighbouring threads share a row, a query or (in the last kernel) a key. Each has DIMS of
// its dimensions in registers; a lane_sum completes a scalar product. Blocks read keys and values
// through shared memory, all rows of a block the same ones at a time.

#define DIMS (HEAD_SIZE / SPLIT)
#define ROWS (THREADS / SPLIT) // of a block
#define TILE 32 // rows in shared memory
#define GROUP 8 // keys that a thread takes together

template <class To, class From>
__device__ inline void load(To *to, const From *from, float factor) {
#pragma unroll
    for (int d = 0; d < DIMS; d++) to[d] = (float)from[d] * factor;
}

template <class T>
__device__ inline float dot(const float *a, const T *b) {
    float sum = 0;
#pragma unroll
    for (int d = 0; d < DIMS; d++) sum += a[d] * (float)b[d];
    return sum;
}

__device__ inline void add(float *sum, float factor, const float *x) {
#pragma unroll
    for (int d = 0; d < DIMS; d++) sum[d] += factor * x[d];
}

// Copies the keys and values from position `tile` on, zeros behind the last. All threads of a block
// call it.
__device__ inline void load_tile(float *ks, float *vs, const real *qkv, const Head &h, int n_kv_heads, int tile) {
    __syncthreads(); // every thread has read the tile before
    for (int i = threadIdx.x; i < TILE * HEAD_SIZE; i += THREADS) {
        const int key = tile + i / HEAD_SIZE, d = i % HEAD_SIZE;
        ks[i] = key < h.length ? (float)qkv[h.k(key) + d] : 0;
        vs[i] = key < h.length ? (float)qkv[h.v(key, n_kv_heads) + d] : 0;
    }
    __syncthreads();
}

// att (sequences * length, n_heads * HEAD_SIZE) and lse. The grid is (blocks of rows, heads,
// sequences).
extern "C" __global__ void __launch_bounds__(THREADS)
    attention(real *att, float *lse, const real *qkv, const u32 *texts, int length, int n_heads, int n_kv_heads,
              Dropout dropout) {
    __shared__ __align__(16) float ks[TILE * HEAD_SIZE], vs[TILE * HEAD_SIZE];
    const Head h(length, n_heads, n_kv_heads, blockIdx.y, blockIdx.z);
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS; // the longest rows first
    const int row = first + threadIdx.x / SPLIT, part = threadIdx.x % SPLIT * DIMS;
    const u32 key_of_row = dropout.row(h.scalar(row));
    float q[DIMS] = {}, o[DIMS] = {}, max = MINUS_INFINITY, sum = 0;
    if (row < length) load(q, qkv + h.q(row) + part, LOG2_E / sqrtf(HEAD_SIZE));
    const int begin = h.begin(texts, row), end = min(first + ROWS, length);
    for (int tile = h.begin(texts, first) / TILE * TILE; tile < end; tile += TILE) {
        load_tile(ks, vs, qkv, h, n_kv_heads, tile);
        for (int j = 0; j < TILE && tile + j < end; j += GROUP) {
            float s[GROUP], most = max;
#pragma unroll
            for (int u = 0; u < GROUP; u++) {
                s[u] = lane_sum(dot(q, ks + (j + u) * HEAD_SIZE + part), SPLIT);
                if (tile + j + u > row || tile + j + u < begin) s[u] = MINUS_INFINITY;
                most = fmaxf(most, s[u]);
            }
            const float smaller = exp2f(max - most);
            max = most;
            sum *= smaller;
#pragma unroll
            for (int d = 0; d < DIMS; d++) o[d] *= smaller;
#pragma unroll
            for (int u = 0; u < GROUP; u++) {
                const float p = exp2f(s[u] - max);
                sum += p;
                add(o, p * dropout.factor(key_of_row, tile + j + u), vs + (j + u) * HEAD_SIZE + part);
            }
        }
    }
    if (row >= length) return;
    load(att + h.out(row) + part, o, 1 / sum);
    if (part == 0) lse[h.scalar(row)] = max + log2f(sum);
}

// The gradient of the queries, and delta. The grid is that of attention.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_q(real *d_qkv, float *delta, const real *qkv, const real *att, const real *d_att,
                         const float *lse, const u32 *texts, int length, int n_heads, int n_kv_heads, Dropout dropout) {
    __shared__ __align__(16) float ks[TILE * HEAD_SIZE], vs[TILE * HEAD_SIZE];
    const Head h(length, n_heads, n_kv_heads, blockIdx.y, blockIdx.z);
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int row = first + threadIdx.x / SPLIT, part = threadIdx.x % SPLIT * DIMS;
    const u32 key_of_row = dropout.row(h.scalar(row));
    float q[DIMS] = {}, d_o[DIMS] = {}, dq[DIMS] = {}, row_lse = 0, row_delta = 0;
    if (row < length) {
        load(q, qkv + h.q(row) + part, LOG2_E / sqrtf(HEAD_SIZE));
        load(d_o, d_att + h.out(row) + part, 1);
        row_lse = lse[h.scalar(row)];
        row_delta = dot(d_o, att + h.out(row) + part);
    }
    row_delta = lane_sum(row_delta, SPLIT);
    if (row < length && part == 0) delta[h.scalar(row)] = row_delta;
    const int begin = h.begin(texts, row), end = min(first + ROWS, length);
    for (int tile = h.begin(texts, first) / TILE * TILE; tile < end; tile += TILE) {
        load_tile(ks, vs, qkv, h, n_kv_heads, tile);
#pragma unroll 4
        for (int j = 0; j < TILE; j++) {
            const float *k = ks + j * HEAD_SIZE + part;
            const float s = lane_sum(dot(q, k), SPLIT);
            const float dp = lane_sum(dot(d_o, vs + j * HEAD_SIZE + part), SPLIT);
            const float p = tile + j <= row && tile + j >= begin ? exp2f(s - row_lse) : 0;
            add(dq, p * (dp * dropout.factor(key_of_row, tile + j) - row_delta), k);
        }
    }
    if (row < length) load(d_qkv + h.q(row) + part, dq, 1 / sqrtf(HEAD_SIZE));
}

// The gradients of keys and values. The grid is (blocks of keys, n_kv_heads, sequences).
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_kv(real *d_qkv, const real *qkv, const real *d_att, const float *lse, const float *delta,
                          const u32 *texts, int length, int n_heads, int n_kv_heads, Dropout dropout) {
    __shared__ __align__(16) float qs[TILE * HEAD_SIZE], d_os[TILE * HEAD_SIZE];
    __shared__ float lses[TILE], deltas[TILE];
    __shared__ int begins[TILE];
    const int kv_mul = n_heads / n_kv_heads, first = blockIdx.x * ROWS;
    const int row = first + threadIdx.x / SPLIT, part = threadIdx.x % SPLIT * DIMS;
    const Head own(length, n_heads, n_kv_heads, blockIdx.y * kv_mul, blockIdx.z);
    float k[DIMS] = {}, v[DIMS] = {}, dk[DIMS] = {}, dv[DIMS] = {};
    if (row < length) {
        load(k, qkv + own.k(row) + part, 1);
        load(v, qkv + own.v(row, n_kv_heads) + part, 1);
    }
    for (int j = 0; j < kv_mul; j++) {
        const Head h(length, n_heads, n_kv_heads, blockIdx.y * kv_mul + j, blockIdx.z);
        for (int tile = first / TILE * TILE; tile < length; tile += TILE) {
            __syncthreads();
            for (int i = threadIdx.x; i < TILE * HEAD_SIZE; i += THREADS) {
                const int query = tile + i / HEAD_SIZE, d = i % HEAD_SIZE;
                qs[i] = query < length ? (float)qkv[h.q(query) + d] * (LOG2_E / sqrtf(HEAD_SIZE)) : 0;
                d_os[i] = query < length ? (float)d_att[h.out(query) + d] : 0;
            }
            load_queries<TILE>(lses, deltas, begins, h, lse, delta, texts, tile);
            __syncthreads();
#pragma unroll 4
            for (int i = 0; i < TILE; i++) {
                const int query = tile + i;
                const float *q = qs + i * HEAD_SIZE + part, *d_o = d_os + i * HEAD_SIZE + part;
                const float s = lane_sum(dot(k, q), SPLIT);
                const float dp = lane_sum(dot(v, d_o), SPLIT);
                const bool seen = row <= query && row >= begins[i] && query < length;
                const float p = seen ? exp2f(s - lses[i]) : 0;
                const float factor = dropout.factor(dropout.row(h.scalar(query)), row);
                add(dv, p * factor, d_o);
                add(dk, p * (dp * factor - deltas[i]), q);
            }
        }
    }
    if (row >= length) return;
    load(d_qkv + own.k(row) + part, dk, LN_2);
    load(d_qkv + own.v(row, n_kv_heads) + part, dv, 1);
}
