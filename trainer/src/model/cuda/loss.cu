// The loss of a row of logits, and its gradient in their place: a block per row.

#define IGNORED 0xffffffffu
#define NEGATIVE_INFINITY (-3.4e38f)

struct Softmax {
    float max, log_sum; // of x / temperature: p = exp(x / temperature - max - log_sum)
};

template <class T>
__device__ inline Softmax softmax(const T *x, int n, float inverse_temperature, float *scratch) {
    float max = NEGATIVE_INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float value = (float)x[i] * inverse_temperature;
        if (value > max) {
            sum *= expf(max - value);
            max = value;
        }
        sum += expf(value - max);
    }
    const float most = block_max(max, scratch);
    return {most, logf(block_sum(sum * expf(max - most), scratch))};
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
    for (int i = threadIdx.x; i < vocab_size; i += THREADS) {
        float d = share * (expf(x[i] - text.max - text.log_sum) - ((u32)i == target ? 1 : 0));
        if (taught) {
            const float p = expf(x[i] * inverse - student.max - student.log_sum);
            d += weight * temperature * (p - expf(t[i] * inverse - teacher.max - teacher.log_sum));
        }
        x[i] = d * scale;
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = row_loss;
}
