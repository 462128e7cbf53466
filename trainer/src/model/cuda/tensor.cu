// Products of 16-bit numbers on tensor cores, by whole warps.
//
// The fragments of a product (16, 16) · (16, 8) are as PTX has them (mma.m16n8k16), two numbers in
// a u32. With g = lane / 4 and t = lane % 4, a lane has of the first factor the columns 2t, 2t + 1
// of rows g and g + 8, then those 8 columns on; of the second one the rows 2t, 2t + 1 of column g,
// then those 8 rows on; of the sum, columns 2t, 2t + 1 of row g, and of row g + 8.

typedef u32 First[4];
typedef u32 Second[2];
typedef float Sum[4];

#ifdef SHIM

inline float power_of_2(float x) { return exp2f(x); }

inline u32 pack(float low, float high) { return to_bits(low) | (u32)to_bits(high) << 16; }

inline void multiply(Sum sum, const First a, const Second b) {
    shim::multiply(sum, a, b, [](u16 bits) { return from_bits(bits); });
}

inline void load_columns(Second *b, const u16 *row) { shim::load_matrices(b[0], row, false); }
inline void load_rows(Second *b, const u16 *row) { shim::load_matrices(b[0], row, true); }

#else

#if DTYPE == 1
#define FORMAT "bf16"
#else
#define FORMAT "f16"
#endif

// As exp2f, but 0 where that is less than a normal number: one instruction.
__device__ inline float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn." FORMAT "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// sum += a · b
__device__ inline void multiply(Sum sum, const First a, const Second b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." FORMAT "." FORMAT ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#define LOAD_MATRICES(how)                                                                   \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" how ".shared.b16 {%0, %1, %2, %3}, [%4];"   \
                 : "=r"(b[0][0]), "=r"(b[0][1]), "=r"(b[1][0]), "=r"(b[1][1])                \
                 : "r"((u32)__cvta_generic_to_shared(row))                                   \
                 : "memory")

// Two second factors from shared memory, whose columns are rows of eight numbers there: lanes 0 to
// 7 name those of the upper half of the first, the next those of its lower half, and so on.
__device__ inline void load_columns(Second *b, const u16 *row) { LOAD_MATRICES(""); }

// The same, of factors whose rows are rows in memory.
__device__ inline void load_rows(Second *b, const u16 *row) { LOAD_MATRICES(".trans"); }

#endif
