// Runs CUDA kernels on a processor, for tests: blocks one after the other, the threads of a block
// as fibres that change at barriers and shuffles only.
//
// A barrier that not all threads of a block reach, or a shuffle that not all lanes of a warp reach,
// ends the launch with a message. A seed shuffles the order of the threads, and with an odd one a
// warp runs as far as it can before the next begins: where a barrier is missing, some thread reads
// what another has not written yet, or has written too early.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include <ucontext.h>

#define SHIM
#define __global__
#define __device__
#define __shared__ static // blocks run one after the other
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
using std::min;

namespace shim {

struct Index {
    unsigned x, y, z;
};

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Fibre {
    ucontext_t context;
    State state;
    std::vector<char> stack;
};

const int BLOCK = 128, LANES = 32;
static Fibre fibres[BLOCK];
static ucontext_t scheduler;
static std::function<void()> body;

} // namespace shim

static shim::Index threadIdx, blockIdx, gridDim;

namespace shim {

static void enter() {
    body();
    const unsigned thread = threadIdx.x;
    fibres[thread].state = DONE;
    swapcontext(&fibres[thread].context, &scheduler);
}

static void wait(State state) {
    const unsigned thread = threadIdx.x;
    fibres[thread].state = state;
    swapcontext(&fibres[thread].context, &scheduler);
}

static bool all(int first, int count, State state) {
    return std::all_of(fibres + first, fibres + first + count, [=](const Fibre &f) { return f.state == state; });
}

static bool release(int first, int count, State state) {
    if (!all(first, count, state)) return false;
    for (int i = first; i < first + count; i++) fibres[i].state = READY;
    return true;
}

// Runs threads up to their next barrier or shuffle. Returns whether any could.
static bool run_threads(const int *threads, int count) {
    bool ran = false;
    for (int i = 0; i < count; i++) {
        Fibre &fibre = fibres[threads[i]];
        if (fibre.state != READY) continue;
        threadIdx = {(unsigned)threads[i], 0, 0};
        swapcontext(&scheduler, &fibre.context);
        ran = true;
    }
    for (int warp = 0; warp < BLOCK; warp += LANES) ran |= release(warp, LANES, AT_SHUFFLE);
    return ran;
}

static const char *run_block(const int *order, bool warp_by_warp) {
    for (auto &fibre : fibres) {
        getcontext(&fibre.context);
        fibre.stack.resize(1 << 16);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        makecontext(&fibre.context, enter, 0);
        fibre.state = READY;
    }
    const int size = warp_by_warp ? LANES : BLOCK;
    while (!all(0, BLOCK, DONE)) {
        bool went_on = false;
        for (int first = 0; first < BLOCK; first += size) {
            while (run_threads(order + first, size)) went_on = true;
        }
        went_on |= release(0, BLOCK, AT_BARRIER);
        if (!went_on) return "not all threads reach the barrier or shuffle";
    }
    return nullptr;
}

// The threads in a random order; warp by warp, with an odd seed.
static void shuffle(int *order, std::mt19937 &random, bool warp_by_warp) {
    if (!warp_by_warp) return std::shuffle(order, order + BLOCK, random);
    int warps[] = {0, 1, 2, 3};
    std::shuffle(warps, warps + 4, random);
    for (int i = 0; i < BLOCK; i++) order[i] = warps[i / LANES] * LANES + i % LANES;
    for (int i = 0; i < BLOCK; i += LANES) std::shuffle(order + i, order + i + LANES, random);
}

template <class... Args, size_t... I>
const char *launch(void (*kernel)(Args...), const unsigned *grid, void **args, unsigned seed,
                   std::index_sequence<I...>) {
    body = [=] { kernel(*static_cast<Args *>(args[I])...); };
    gridDim = {grid[0], grid[1], grid[2]};
    std::mt19937 random(seed);
    int order[BLOCK];
    for (int i = 0; i < BLOCK; i++) order[i] = i;
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++) {
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++) {
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
                if (seed) shuffle(order, random, seed % 2);
                if (const char *error = run_block(order, seed % 2)) return error;
            }
        }
    }
    return nullptr;
}

// The number of arguments guards against a host that passes others.
template <class... Args>
const char *launch(void (*kernel)(Args...), const unsigned *grid, void **args, unsigned count, unsigned seed) {
    if (count != sizeof...(Args)) return "another number of arguments";
    return launch(kernel, grid, args, seed, std::index_sequence_for<Args...>());
}

// float16, rounded to the nearest, of two the even one.
static unsigned short float16_bits(float x) {
    const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return 0x7fff;
    int exponent;
    std::frexp(x, &exponent); // |x| is below 2^exponent
    const double unit = std::ldexp(1.0, std::max(exponent, -13) - 11);
    const double rounded = std::nearbyint(std::fabs(x) / unit) * unit;
    if (rounded > 65504) return sign | 0x7c00;
    if (rounded < std::ldexp(1.0, -14)) return sign | (unsigned short)std::ldexp(rounded, 24);
    const double fraction = std::frexp(rounded, &exponent);
    return sign | (unsigned short)(((exponent + 14) << 10) + (int)std::ldexp(fraction * 2 - 1, 10));
}

static std::vector<float> float16_values() {
    std::vector<float> values;
    for (int bits = 0; bits < 1 << 16; bits++) {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                            : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                           : std::ldexp(fraction, -24);
        values.push_back(bits >> 15 ? -size : size);
    }
    return values;
}

static float float16_value(unsigned short bits) {
    static const std::vector<float> values = float16_values();
    return values[bits];
}

// What the lanes of a warp pass to each other at a shuffle. There are two sets of slots, taken in
// turn: a lane that writes into the other set at the next shuffle disturbs none that still reads.
template <class T>
static const T *exchange(const T &mine) {
    static T slots[2][BLOCK];
    static bool second[BLOCK];
    const unsigned thread = threadIdx.x;
    T *set = slots[second[thread] = !second[thread]];
    set[thread] = mine;
    wait(AT_SHUFFLE);
    return set + thread / LANES * LANES;
}

struct Factors {
    unsigned a[4], b[2];
};

// mma.m16n8k16: `value` gives the number that 16 bits stand for.
template <class Value>
static void multiply(float *sum, const unsigned *a, const unsigned *b, Value value) {
    const unsigned lane = threadIdx.x % LANES;
    const Factors *all = exchange(Factors{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 % 8, col = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const unsigned x = all[row * 4 + k % 8 / 2].a[i / 2 + k / 8 * 2];
            const unsigned y = all[col * 4 + k % 8 / 2].b[k / 8];
            sum[i] += value(x >> k % 2 * 16 & 0xffff) * value(y >> k % 2 * 16 & 0xffff);
        }
    }
}

// ldmatrix.x4, or ldmatrix.x4.trans: each lane names a row of eight numbers.
static void load_matrices(unsigned *to, const unsigned short *row, bool transposed) {
    const unsigned lane = threadIdx.x % LANES;
    const unsigned short *const *all = exchange(row);
    for (int i = 0; i < 4; i++) {
        const unsigned short *const *rows = all + i * 8;
        const unsigned g = lane / 4, t = lane % 4 * 2;
        const unsigned low = transposed ? rows[t][g] : rows[g][t];
        const unsigned high = transposed ? rows[t + 1][g] : rows[g][t + 1];
        to[i] = low | high << 16;
    }
}

} // namespace shim

static unsigned __float_as_uint(float x) {
    unsigned u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float __uint_as_float(unsigned u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static void __syncthreads() { shim::wait(shim::AT_BARRIER); }

static float __shfl_xor_sync(unsigned, float x, int offset) {
    return shim::exchange(x)[threadIdx.x % shim::LANES ^ offset];
}

#define EMULATE(kernel)                                                                          \
    extern "C" const char *emulate_##kernel(const unsigned *grid, void **args, unsigned count,   \
                                            unsigned seed) {                                     \
        return shim::launch(kernel, grid, args, count, seed);                                    \
    }
