// Causal attention without a matrix of weights in memory. qkv is (sequences * length, width),
// rotated: n_heads heads of queries, n_kv_heads of keys, and as many of values.
//
// `lse` and `delta` are (sequences, n_heads, length): the log2 of the sum of the exponentials, and
// the scalar product of the output and its gradient, which is what softmax's gradient takes from
// each score's. With `texts`, (sequences * length), a query sees no key before the position that
// it gives; texts do not begin earlier in later positions.

#define LN_2 0.69314718056f
#define LOG2_E 1.44269504089f
#define MINUS_INFINITY (-1e30f) // its difference with itself is a number

struct Head {
    int length, width, head, kv_head, n_heads, sequence;

    __device__ Head(int length, int n_heads, int n_kv_heads, int head, int sequence)
        : length(length), width((n_heads + 2 * n_kv_heads) * HEAD_SIZE), head(head),
          kv_head(n_heads + head / (n_heads / n_kv_heads)), n_heads(n_heads), sequence(sequence) {}

    __device__ u64 q(int row) const { return ((u64)sequence * length + row) * width + head * HEAD_SIZE; }
    __device__ u64 k(int row) const { return ((u64)sequence * length + row) * width + kv_head * HEAD_SIZE; }
    __device__ u64 v(int row, int n_kv_heads) const { return k(row) + (u64)n_kv_heads * HEAD_SIZE; }
    __device__ u64 out(int row) const { return (((u64)sequence * length + row) * n_heads + head) * HEAD_SIZE; }
    __device__ u64 scalar(int row) const { return ((u64)sequence * n_heads + head) * length + row; }

    // The first key that a query sees.
    __device__ int begin(const u32 *texts, int row) const {
        return texts && row < length ? texts[(u64)sequence * length + row] : 0;
    }
};

// Copies to shared memory what backward takes of N queries from position `first` on, zeros behind
// the last. A thread has a query.
template <int N>
__device__ inline void load_queries(float *lses, float *deltas, int *begins, const Head &h, const float *lse,
                                    const float *delta, const u32 *texts, int first) {
    if (threadIdx.x >= N) return;
    const int query = first + threadIdx.x;
    lses[threadIdx.x] = query < h.length ? lse[h.scalar(query)] : 0;
    deltas[threadIdx.x] = query < h.length ? delta[h.scalar(query)] : 0;
    begins[threadIdx.x] = h.begin(texts, query);
}
