// The rotary position embedding of queries and keys, in place: a thread has a pair.

// x (positions, width), of which the first `heads` heads are rotated by `sign` times the angles;
// cos and sin are (length, HEAD_SIZE / 2).
extern "C" __global__ void rope(real *x, const float *cos, const float *sin, int positions, int length, int width,
                                int heads, float sign) {
    const int half = HEAD_SIZE / 2, pairs = heads * half;
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    const int position = i / pairs, pair = i % pairs;
    if (position >= positions) return;
    real *at = x + (u64)position * width + 2 * pair;
    const int angle = position % length * half + pair % half;
    const float c = cos[angle], s = sign * sin[angle], x0 = at[0], x1 = at[1];
    at[0] = x0 * c - x1 * s;
    at[1] = x0 * s + x1 * c;
}
