// What the kernels share. The host puts these definitions in front: HEAD_SIZE; SPLIT, the threads
// that share a row of attention; DTYPE, the format of `real`.
//
// Activations, but for the residual stream, and matrices of weights are `real`; everything is
// computed, and all else is kept, in f32. Matrices are row-major. A `Dropout` is that of
// ../dropout.rs: the same hash drops the same elements on every device.

#define THREADS 128 // of every block
#define WARP 32
#define WIDE (16 / (int)sizeof(real)) // numbers of the widest access to memory
#define ALL_LANES 0xffffffffu

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if DTYPE == 0
typedef float real;
#else

#if DTYPE == 1 // bfloat16

__device__ inline u16 to_bits(float x) {
#if __CUDA_ARCH__ >= 800
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    const u32 u = __float_as_uint(x);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fc0; // NaN
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;        // the nearest, of two the even one
#endif
}

__device__ inline float from_bits(u16 bits) { return __uint_as_float((u32)bits << 16); }

#elif defined(SHIM) // float16

inline u16 to_bits(float x) { return shim::float16_bits(x); }
inline float from_bits(u16 bits) { return shim::float16_value(bits); }

#else

__device__ inline u16 to_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__device__ inline float from_bits(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

#endif

struct real {
    u16 bits;

    real() = default;
    __device__ real(float x) : bits(to_bits(x)) {}
    __device__ operator float() const { return from_bits(bits); }
};

#endif

// N neighbours, which one access to memory takes if their address is a multiple of their size.
template <class T, int N>
struct __align__(N * sizeof(T)) Some {
    T at[N];
};

template <int N, class T>
__device__ inline const Some<T, N> &some(const T *x) {
    return *(const Some<T, N> *)x;
}

template <int N, class T>
__device__ inline Some<T, N> &some(T *x) {
    return *(Some<T, N> *)x;
}

// The sum of x over neighbouring lanes, `lanes` of them, in each of those.
__device__ inline float lane_sum(float x, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    }
    return x;
}

__device__ inline float lane_max(float x, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    }
    return x;
}

// The sum of x over the block, in every thread; `scratch` has a place for each warp.
__device__ inline float block_sum(float x, float *scratch) {
    x = lane_sum(x, WARP);
    __syncthreads(); // the scratch of the call before has been read
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < THREADS / WARP; i++) x += scratch[i];
    return x;
}

__device__ inline float block_max(float x, float *scratch) {
    x = lane_max(x, WARP);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = scratch[0];
    for (int i = 1; i < THREADS / WARP; i++) x = fmaxf(x, scratch[i]);
    return x;
}

__device__ inline u64 mix(u64 x) {
    u64 z = x + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

struct Dropout {
    u64 seed;
    u32 threshold;
    float scale; // 0 drops nothing

    __device__ u32 row(int row) const { return scale == 0 ? 0 : (u32)mix(seed ^ (u64)row); }

    __device__ float factor(u32 row, int col) const {
        if (scale == 0) return 1;
        u32 h = row ^ ((u32)col * 0x9E3779B9u);
        h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
        h = (h ^ (h >> 13)) * 0xC2B2AE35u;
        h ^= h >> 16;
        return h < threshold ? 0.0f : scale;
    }
};
