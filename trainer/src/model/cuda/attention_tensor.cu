// Attention on tensor cores, of numbers of 16 bits.
//
// A warp has 16 rows of a head, queries or (in the last kernel) keys, as first factors of products
// in registers; a block reads the others through shared memory, TILE rows at a time. Weights, and
// gradients of scores, come out of a product as sums and go into the next as its first factor.

#define PADDED ((HEAD_SIZE + 15) / 16 * 16)
#define STEPS (PADDED / 16) // products of 16 dimensions
#define STRIDE (PADDED + 8) // of rows in shared memory: eight of them begin in different banks
#define ROWS 64             // of a block
#define OWN 16              // rows of a warp
#define TILE 64
#define PART (HEAD_SIZE > 64 ? 16 : 32) // columns that backward takes together: registers are few

// Blocks that a multiprocessor is to run at a time, for heads of at most 64 numbers and for larger
// ones: the compiler keeps to the registers that this leaves.
#define BOUNDS(small, large) __launch_bounds__(THREADS, HEAD_SIZE > 64 ? large : small)

// Of scalar products, whose exponentials are powers of 2.
#define SCALE (LOG2_E / sqrtf(HEAD_SIZE))

// What one access to memory copies.
#if HEAD_SIZE % 8 == 0
struct __align__(16) Piece { u32 words[4]; };
#else
struct Piece { u32 words[1]; };
#endif
#define PIECE (sizeof(Piece) / 2)

// A lane's places in a product: rows row and row + 8, columns col and col + 1.
struct Lane {
    int row, col;

    __device__ Lane() : row(threadIdx.x % WARP / 4), col(threadIdx.x % 4 * 2) {}
};

// Copies TILE rows of a head to shared memory, zeros behind the last row and dimension.
__device__ inline void copy_rows(u16 *to, const real *from, u64 stride, int first, int length) {
    for (int i = threadIdx.x; i < TILE * PADDED / (int)PIECE; i += THREADS) {
        const int row = i / (PADDED / PIECE), d = i % (PADDED / PIECE) * PIECE;
        Piece piece = {};
        if (first + row < length && d < HEAD_SIZE) piece = *(const Piece *)(from + (first + row) * stride + d);
        *(Piece *)(to + row * STRIDE + d) = piece;
    }
}

// A warp's rows of a head as first factors, zeros behind the last row and dimension.
__device__ inline void load_own(First *a, const real *from, u64 stride, int first, int length) {
    const Lane lane;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first + lane.row + i % 2 * 8, d = k * 16 + lane.col + i / 2 * 8;
            a[k][i] = row < length && d < HEAD_SIZE ? *(const u32 *)(from + row * stride + d) : 0;
        }
    }
}

// sums (16, COLS) = a · rowsᵀ, of COLS rows in shared memory
template <int COLS>
__device__ inline void scores(Sum *sums, const First *a, const u16 *rows) {
    const int lane = threadIdx.x % WARP;
    rows += (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int j = 0; j < COLS / 8; j += 2) {
        for (int i = 0; i < 4; i++) sums[j][i] = sums[j + 1][i] = 0;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            Second b[2];
            load_columns(b, rows + j * 8 * STRIDE + k * 16);
            multiply(sums[j], a[k], b[0]);
            multiply(sums[j + 1], a[k], b[1]);
        }
    }
}

// sums (16, PADDED) += weights (16, COLS) · rows
template <int COLS>
__device__ inline void add_weighted(Sum *sums, const Sum *weights, const u16 *rows) {
    const int lane = threadIdx.x % WARP;
    rows += lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < COLS / 16; k++) {
        const Sum *w = weights + 2 * k;
        const First a = {pack(w[0][0], w[0][1]), pack(w[0][2], w[0][3]), pack(w[1][0], w[1][1]), pack(w[1][2], w[1][3])};
#pragma unroll
        for (int d = 0; d < PADDED / 8; d += 2) {
            Second b[2];
            load_rows(b, rows + k * 16 * STRIDE + d * 8);
            multiply(sums[d], a, b[0]);
            multiply(sums[d + 1], a, b[1]);
        }
    }
}

// Writes a warp's rows, each times its factor.
__device__ inline void store_own(real *to, u64 stride, int first, int length, const Sum *sums, const float *factors) {
    const Lane lane;
#pragma unroll
    for (int d = 0; d < PADDED / 8; d++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = first + lane.row + 8 * r, col = d * 8 + lane.col;
            if (row >= length || col >= HEAD_SIZE) continue;
            *(u32 *)(to + row * stride + col) = pack(sums[d][2 * r] * factors[r], sums[d][2 * r + 1] * factors[r]);
        }
    }
}

// Hides from a warp's queries the keys that they do not see, of COLS keys from position `first` on.
template <int COLS>
__device__ inline void hide_keys(Sum *s, const Head &h, const u32 *texts, int own, int first) {
    if (!texts && first + COLS <= own + 1) return; // all are seen
    const Lane lane;
    const int begins[2] = {h.begin(texts, own + lane.row), h.begin(texts, own + lane.row + 8)};
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int key = first + j * 8 + lane.col + i % 2, query = own + lane.row + i / 2 * 8;
            if (key > query || key < begins[i / 2]) s[j][i] = MINUS_INFINITY;
        }
    }
}

// x = dropout(x) of a warp's queries, and COLS keys from position `first` on.
template <int COLS>
__device__ inline void drop_weights(Sum *x, const Dropout &dropout, const Head &h, int own, int first) {
    const Lane lane;
    const u32 rows[2] = {dropout.row(h.scalar(own + lane.row)), dropout.row(h.scalar(own + lane.row + 8))};
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) {
        for (int i = 0; i < 4; i++) x[j][i] *= dropout.factor(rows[i / 2], first + j * 8 + lane.col + i % 2);
    }
}

// Hides from a warp's keys the queries that do not see them, of PART queries from position `first`
// on. With `begins` each query sees keys from there on.
__device__ inline void hide_queries(Sum *s, const int *begins, int own, int first) {
    if (!begins && own + OWN <= first + 1) return; // all see
    const Lane lane;
#pragma unroll
    for (int j = 0; j < PART / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = j * 8 + lane.col + i % 2, key = own + lane.row + i / 2 * 8;
            if (key > first + at || (begins && key < begins[at])) s[j][i] = MINUS_INFINITY;
        }
    }
}

// dp = the gradients of a warp's scores, from those of its weights; p = dropout(p). The columns are
// PART queries from position `first` on.
__device__ inline void gradients(Sum *dp, Sum *p, const float *deltas, const Dropout &dropout, const Head &h, int own,
                                 int first) {
    const Lane lane;
#pragma unroll
    for (int j = 0; j < PART / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = j * 8 + lane.col + i % 2;
            float factor = 1;
            if (dropout.scale != 0) {
                factor = dropout.factor(dropout.row(h.scalar(first + at)), own + lane.row + i / 2 * 8);
            }
            dp[j][i] = p[j][i] * (dp[j][i] * factor - deltas[at]);
            p[j][i] *= factor;
        }
    }
}

// att (sequences * length, n_heads * HEAD_SIZE) and lse. The grid is (blocks of rows, heads,
// sequences).
extern "C" __global__ void BOUNDS(4, 3)
    attention(real *att, float *lse, const real *qkv, const u32 *texts, int length, int n_heads, int n_kv_heads,
              Dropout dropout) {
    __shared__ __align__(16) u16 ks[TILE * STRIDE], vs[TILE * STRIDE];
    const Head h(length, n_heads, n_kv_heads, blockIdx.y, blockIdx.z);
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS; // the longest rows first
    const int own = first + threadIdx.x / WARP * OWN;
    const Lane lane;
    First q[STEPS];
    load_own(q, qkv + h.q(0), h.width, own, length);
    Sum o[PADDED / 8] = {};
    float max[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {};
    const int end = min(first + ROWS, length);
    for (int tile = h.begin(texts, first) / TILE * TILE; tile < end; tile += TILE) {
        __syncthreads(); // every warp has read the tile before
        copy_rows(ks, qkv + h.k(0), h.width, tile, length);
        copy_rows(vs, qkv + h.v(0, n_kv_heads), h.width, tile, length);
        __syncthreads();
        Sum s[TILE / 8];
        scores<TILE>(s, q, ks);
        hide_keys<TILE>(s, h, texts, own, tile);
        float most[2] = {max[0], max[1]};
#pragma unroll
        for (int j = 0; j < TILE / 8; j++) {
            for (int i = 0; i < 4; i++) most[i / 2] = fmaxf(most[i / 2], s[j][i]);
        }
        float smaller[2], base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            most[r] = lane_max(most[r], 4); // four lanes share a row
            smaller[r] = power_of_2((max[r] - most[r]) * SCALE);
            base[r] = most[r] == MINUS_INFINITY ? 0 : most[r] * SCALE; // or a difference of rounding would count
            max[r] = most[r];
            sum[r] *= smaller[r];
        }
#pragma unroll
        for (int d = 0; d < PADDED / 8; d++) {
            for (int i = 0; i < 4; i++) o[d][i] *= smaller[i / 2];
        }
#pragma unroll
        for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = power_of_2(s[j][i] * SCALE - base[i / 2]);
                sum[i / 2] += s[j][i];
            }
        }
        if (dropout.scale != 0) drop_weights<TILE>(s, dropout, h, own, tile);
        add_weighted<TILE>(o, s, vs);
    }
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = lane_sum(sum[r], 4);
        inverse[r] = 1 / sum[r];
        const int row = own + lane.row + 8 * r;
        if (row < length && lane.col == 0) lse[h.scalar(row)] = max[r] * SCALE + log2f(sum[r]);
    }
    store_own(att + h.out(0), (u64)n_heads * HEAD_SIZE, own, length, o, inverse);
}

// The gradient of the queries, and delta. The grid is that of attention.
extern "C" __global__ void BOUNDS(4, 2)
    attention_backward_q(real *d_qkv, float *delta, const real *qkv, const real *att, const real *d_att,
                         const float *lse, const u32 *texts, int length, int n_heads, int n_kv_heads, Dropout dropout) {
    __shared__ __align__(16) u16 ks[TILE * STRIDE], vs[TILE * STRIDE];
    const Head h(length, n_heads, n_kv_heads, blockIdx.y, blockIdx.z);
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int own = first + threadIdx.x / WARP * OWN;
    const Lane lane;
    const u64 width = (u64)n_heads * HEAD_SIZE;
    First q[STEPS], d_o[STEPS];
    load_own(q, qkv + h.q(0), h.width, own, length);
    load_own(d_o, d_att + h.out(0), width, own, length);
    float row_lse[2] = {}, row_delta[2] = {};
    {
        First o[STEPS];
        load_own(o, att + h.out(0), width, own, length);
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                row_delta[i % 2] += from_bits(o[k][i]) * from_bits(d_o[k][i]);
                row_delta[i % 2] += from_bits(o[k][i] >> 16) * from_bits(d_o[k][i] >> 16);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = own + lane.row + 8 * r;
        row_delta[r] = lane_sum(row_delta[r], 4);
        if (row >= length) continue;
        row_lse[r] = lse[h.scalar(row)];
        if (lane.col == 0) delta[h.scalar(row)] = row_delta[r];
    }
    Sum dq[PADDED / 8] = {};
    const int end = min(first + ROWS, length);
    for (int tile = h.begin(texts, first) / TILE * TILE; tile < end; tile += TILE) {
        __syncthreads();
        copy_rows(ks, qkv + h.k(0), h.width, tile, length);
        copy_rows(vs, qkv + h.v(0, n_kv_heads), h.width, tile, length);
        __syncthreads();
#pragma unroll 1
        for (int part = 0; part < TILE && tile + part < own + OWN; part += PART) {
            Sum s[PART / 8], dp[PART / 8];
            scores<PART>(s, q, ks + part * STRIDE);
            scores<PART>(dp, d_o, vs + part * STRIDE);
            hide_keys<PART>(s, h, texts, own, tile + part);
            if (dropout.scale != 0) drop_weights<PART>(dp, dropout, h, own, tile + part);
#pragma unroll
            for (int j = 0; j < PART / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[j][i] = power_of_2(s[j][i] * SCALE - row_lse[i / 2]) * (dp[j][i] - row_delta[i / 2]);
                }
            }
            add_weighted<PART>(dq, s, ks + part * STRIDE);
        }
    }
    const float factors[2] = {1 / sqrtf(HEAD_SIZE), 1 / sqrtf(HEAD_SIZE)};
    store_own(d_qkv + h.q(0), h.width, own, length, dq, factors);
}

// The gradients of keys and values. The grid is (blocks of keys, n_kv_heads, sequences).
extern "C" __global__ void BOUNDS(3, 2)
    attention_backward_kv(real *d_qkv, const real *qkv, const real *d_att, const float *lse, const float *delta,
                          const u32 *texts, int length, int n_heads, int n_kv_heads, Dropout dropout) {
    __shared__ __align__(16) u16 qs[TILE * STRIDE], d_os[TILE * STRIDE];
    __shared__ float lses[TILE], deltas[TILE];
    __shared__ int begins[TILE];
    const int kv_mul = n_heads / n_kv_heads, first = blockIdx.x * ROWS;
    const int own = first + threadIdx.x / WARP * OWN;
    const Lane lane;
    const Head kv(length, n_heads, n_kv_heads, blockIdx.y * kv_mul, blockIdx.z);
    First k[STEPS], v[STEPS];
    load_own(k, qkv + kv.k(0), kv.width, own, length);
    load_own(v, qkv + kv.v(0, n_kv_heads), kv.width, own, length);
    Sum dk[PADDED / 8] = {}, dv[PADDED / 8] = {};
    for (int head = 0; head < kv_mul; head++) {
        const Head h(length, n_heads, n_kv_heads, blockIdx.y * kv_mul + head, blockIdx.z);
        for (int tile = first; tile < length; tile += TILE) {
            __syncthreads();
            copy_rows(qs, qkv + h.q(0), h.width, tile, length);
            copy_rows(d_os, d_att + h.out(0), (u64)n_heads * HEAD_SIZE, tile, length);
            load_queries<TILE>(lses, deltas, begins, h, lse, delta, texts, tile);
            __syncthreads();
#pragma unroll 1
            for (int part = 0; part < TILE; part += PART) {
                if (tile + part + PART <= own) continue; // queries that see none of the warp's keys
                Sum s[PART / 8], dp[PART / 8];
                scores<PART>(s, k, qs + part * STRIDE);
                scores<PART>(dp, v, d_os + part * STRIDE);
                hide_queries(s, texts ? begins + part : nullptr, own, tile + part);
#pragma unroll
                for (int j = 0; j < PART / 8; j++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        s[j][i] = power_of_2(s[j][i] * SCALE - lses[part + j * 8 + lane.col + i % 2]);
                    }
                }
                gradients(dp, s, deltas + part, dropout, h, own, tile + part);
                add_weighted<PART>(dv, s, d_os + part * STRIDE);
                add_weighted<PART>(dk, dp, qs + part * STRIDE);
            }
        }
    }
    const float factors[2] = {1 / sqrtf(HEAD_SIZE), 1 / sqrtf(HEAD_SIZE)}, ones[2] = {1, 1};
    store_own(d_qkv + kv.k(0), kv.width, own, length, dk, factors);
    store_own(d_qkv + kv.v(0, n_kv_heads), kv.width, own, length, dv, ones);
}
