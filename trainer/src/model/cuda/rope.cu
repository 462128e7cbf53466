// The rotary position embedding of queries and keys, in place: a block has a position.

// x (positions, width), of which the first `heads` heads are rotated by `sign` times the angles;
// cos and sin are (length, HEAD_SIZE / 2).
extern "C" __global__ void rope(real *x, const float *cos, const float *sin, int length, int width, int heads,
                                float sign) {
    const int half = HEAD_SIZE / 2, angles = blockIdx.x % length * half;
    real *row = x + (u64)blockIdx.x * width;
    for (int i = threadIdx.x; i < heads * half; i += THREADS) {
        const int angle = angles + i % half;
        const float c = cos[angle], s = sign * sin[angle];
        Some<real, 2> &pair = some<2>(row + 2 * i);
        const float x0 = pair.at[0], x1 = pair.at[1];
        pair = {x0 * c - x1 * s, x0 * s + x1 * c};
    }
}
