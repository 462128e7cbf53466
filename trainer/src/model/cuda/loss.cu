// The loss of a row of logits, and its gradient in their place: a block per row.

#define IGNORED 0xffffffffu
#define NEGATIVE_INFINITY (-3.4e38f)

struct Softmax {
    float max, log_sum; // of x / temperature: p = exp(x / temperature - max - log_sum)
};

template <int N, class T>
__device__ inline Softmax softmax_of(const T *x, int n, float inverse_temperature, float *scratch) {
    float max = NEGATIVE_INFINITY, sum = 0;
    for (int i = N * threadIdx.x; i < n; i += N * THREADS) {
        const Some<T, N> some_x = some<N>(x + i);
        float values[N], most = max;
#pragma unroll
        for (int j = 0; j < N; j++) {
            values[j] = (float)some_x.at[j] * inverse_temperature;
            most = fmaxf(most, values[j]);
        }
        if (most > max) sum *= expf(max - most);
        max = most;
#pragma unroll
        for (int j = 0; j < N; j++) sum += expf(values[j] - max);
    }
    const float most = block_max(max, scratch);
    return {most, logf(block_sum(sum * expf(max - most), scratch))};
}

template <class T>
__device__ inline Softmax softmax(const T *x, int n, float inverse_temperature, float *scratch) {
    return n % WIDE == 0 ? softmax_of<WIDE>(x, n, inverse_temperature, scratch)
                         : softmax_of<1>(x, n, inverse_temperature, scratch);
}

// The gradient of a text's loss, without a teacher, in the place of the logits.
template <int N>
__device__ inline void gradient_of_text(real *x, int n, u32 target, const Softmax &text, float scale) {
    for (int i = N * threadIdx.x; i < n; i += N * THREADS) {
        Some<real, N> d = some<N>(x + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            d.at[j] = scale * (expf(d.at[j] - text.max - text.log_sum) - ((u32)(i + j) == target ? 1 : 0));
        }
        some<N>(x + i) = d;
    }
}

// losses (rows) = the loss of each row; the logits become its gradient times `scale`. See `Teacher`
// in ../batch.rs.
extern "C" __global__ void loss(float *losses, real *logits, const u32 *targets, const float *taught, int vocab_size,
                                float scale, float weight, float temperature) {
    __shared__ float scratch[THREADS / WARP];
    real *x = logits + (u64)blockIdx.x * vocab_size;
    const u32 target = targets[blockIdx.x];
    if (target == IGNORED) {
        for (int i = threadIdx.x; i < vocab_size; i += THREADS) x[i] = 0;
        if (threadIdx.x == 0) losses[blockIdx.x] = 0;
        return; // the whole block
    }
    const Softmax text = softmax(x, vocab_size, 1, scratch);
    const float share = taught ? 1 - weight : 1;
    float row_loss = share * (text.max - x[target] + text.log_sum);
    Softmax student = {0, 0}, teacher = {0, 0};
    const float *t = taught + (u64)blockIdx.x * vocab_size, inverse = 1 / temperature;
    if (taught) {
        student = softmax(x, vocab_size, inverse, scratch);
        teacher = softmax(t, vocab_size, inverse, scratch);
        float divergence = 0;
        for (int i = threadIdx.x; i < vocab_size; i += THREADS) {
            const float log_p = t[i] * inverse - teacher.max - teacher.log_sum;
            divergence += expf(log_p) * (log_p - (x[i] * inverse - student.max - student.log_sum));
        }
        row_loss += weight * temperature * temperature * block_sum(divergence, scratch);
    }
    __syncthreads(); // x[target] has been read
    if (threadIdx.x == 0) losses[blockIdx.x] = row_loss;
    if (!taught) {
        vocab_size % WIDE == 0 ? gradient_of_text<WIDE>(x, vocab_size, target, text, scale)
                               : gradient_of_text<1>(x, vocab_size, target, text, scale);
        return;
    }
    for (int i = threadIdx.x; i < vocab_size; i += THREADS) {
        float d = share * (expf(x[i] - text.max - text.log_sum) - ((u32)i == target ? 1 : 0));
        const float p = expf(x[i] * inverse - student.max - student.log_sum);
        d += weight * temperature * (p - expf(t[i] * inverse - teacher.max - teacher.log_sum));
        x[i] = d * scale;
    }
}
