// The functions of kernels/ptx.cuh for the simulator: the same names and arguments, implemented from
// the PTX ISA.  An asynchronous copy completes only when its group is waited for, so that a missing
// wait gives a wrong result.

#ifndef CUDASIM_PTX_H
#define CUDASIM_PTX_H

// --- 16-bit numbers ---

struct half {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

__device__ inline float to_float(half h) {
    unsigned sign = (h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    float value = exponent ? ldexpf(float(1024 + mantissa), int(exponent) - 25)
                           : ldexpf(float(mantissa), -24);  // denormal
    return sign ? -value : value;
}

__device__ inline half to_half(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u;
    float size = fabsf(x);
    if (size != size) return half{0x7fff};
    if (size >= 65520.0f) return half{(unsigned short)(sign | 0x7c00u)};  // rounds to infinity
    int exponent;
    frexpf(size, &exponent);  // size = [0.5, 1) * 2^exponent
    if (size == 0.0f || exponent < -13) exponent = -13;  // denormals share the smallest exponent
    // In units of the last place; nearbyint rounds ties to even, as the instruction does.
    unsigned steps = unsigned(nearbyintf(ldexpf(size, 11 - exponent)));
    return half{(unsigned short)(sign | ((unsigned(exponent + 13) << 10) + steps))};
}

__device__ inline float to_float(bfloat16 b) { return __uint_as_float((unsigned)b.bits << 16); }

__device__ inline bfloat16 to_bfloat16(float x) {
    unsigned bits = __float_as_uint(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits += 0x7fffu + (bits >> 16 & 1u);
    return bfloat16{(unsigned short)(nan ? 0x7fffu : bits >> 16)};
}

__device__ inline unsigned pack(half low, half high) {
    return (unsigned)high.bits << 16 | low.bits;
}

__device__ inline unsigned pack(bfloat16 low, bfloat16 high) {
    return (unsigned)high.bits << 16 | low.bits;
}

__device__ inline float to_float(float x) { return x; }

template <class T>
__device__ inline T from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
    return x;
}

template <>
__device__ inline half from_float<half>(float x) {
    return to_half(x);
}

template <>
__device__ inline bfloat16 from_float<bfloat16>(float x) {
    return to_bfloat16(x);
}

__device__ inline unsigned pack_half(float low, float high) {
    return pack(to_half(low), to_half(high));
}

__device__ inline unsigned pack_bfloat16(float low, float high) {
    return pack(to_bfloat16(low), to_bfloat16(high));
}

__device__ inline unsigned to_tf32(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinities and NaNs are unchanged
    return (bits + 0x1000u) & ~0x1fffu;
}

__device__ inline int thread_again() { return int(threadIdx.x); }

// --- asynchronous copies ---

template <int BYTES>
__device__ inline void copy_async(void* to, const void* from, int from_bytes = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "");
    cudasim_copy_async(to, from, BYTES, from_bytes);
}

__device__ inline void copy_async_commit() { cudasim_copy_commit(); }

template <int GROUPS_LEFT>
__device__ inline void copy_async_wait() {
    cudasim_copy_wait(GROUPS_LEFT);
}

// --- instructions of a whole warp ---

namespace cudasim {

// Tensor-core instructions need all 32 lanes: the last warp of a block may have fewer.
inline CUDASIM_QUIET void need_whole_warp(void* const* lanes, const char* what) {
    for (int lane = 0; lane < 32; ++lane)
        if (!lanes[lane])
            cudasim_fail("calls %s, but lane %d of its warp does not: all 32 must", what, lane);
}

struct MatrixRows {
    const void* row;
    unsigned* registers;
};

template <int COUNT, bool TRANSPOSED>
CUDASIM_QUIET void combine_matrices(void* const* lanes, void*) {
    need_whole_warp(lanes, "ldmatrix");
    for (int matrix = 0; matrix < COUNT; ++matrix) {
        unsigned short values[8][8];
        for (int row = 0; row < 8; ++row)
            memcpy(values[row], static_cast<MatrixRows*>(lanes[8 * matrix + row])->row, 16);
        for (int lane = 0; lane < 32; ++lane) {
            int i = lane / 4, j = lane % 4 * 2;
            unsigned low = TRANSPOSED ? values[j][i] : values[i][j];
            unsigned high = TRANSPOSED ? values[j + 1][i] : values[i][j + 1];
            static_cast<MatrixRows*>(lanes[lane])->registers[matrix] = high << 16 | low;
        }
    }
}

template <int COUNT, bool TRANSPOSED>
inline void load_matrices(unsigned* registers, const void* row, CallSite site) {
    if (cudasim_lane < 8 * COUNT) {
        if (reinterpret_cast<uintptr_t>(row) % 16)
            cudasim_fail("calls ldmatrix at %s:%d with an address that is not a multiple of 16 bytes",
                         site.file, site.line);
        cudasim_touch(row, 16, 0, 0);
    }
    MatrixRows mine = {row, registers};
    cudasim_warp_sync(0xffffffffu, &mine, combine_matrices<COUNT, TRANSPOSED>, nullptr, site);
}

struct Fragments {
    float* d;
    const unsigned *a, *b;
};

struct Tf32 {
    static constexpr int kPerRegister = 1;
    static float value(unsigned bits, int) { return __uint_as_float(bits & ~0x1fffu); }
};

struct Half {
    static constexpr int kPerRegister = 2;
    static float value(unsigned bits, int i) {
        return to_float(half{(unsigned short)(bits >> 16 * i)});
    }
};

struct Bfloat16 {
    static constexpr int kPerRegister = 2;
    static float value(unsigned bits, int i) {
        return to_float(bfloat16{(unsigned short)(bits >> 16 * i)});
    }
};

// D += A B, 16 x K times K x 8.  In double the products are exact and their sum nearly so; the
// hardware's sum has its own order and rounding.
template <class T, int K>
CUDASIM_QUIET void combine_multiply(void* const* lanes, void*) {
    need_whole_warp(lanes, "mma");
    constexpr int P = T::kPerRegister, SPAN = 4 * P;  // one register in each of 4 lanes covers SPAN of K
    float a[16][K], b[8][K];
    for (int lane = 0; lane < 32; ++lane) {
        const Fragments* mine = static_cast<Fragments*>(lanes[lane]);
        int g = lane / 4, t = lane % 4;
        for (int part = 0; part < K / SPAN; ++part)
            for (int i = 0; i < P; ++i) {
                int k = part * SPAN + t * P + i;
                a[g][k] = T::value(mine->a[2 * part], i);
                a[g + 8][k] = T::value(mine->a[2 * part + 1], i);
                b[g][k] = T::value(mine->b[part], i);
            }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* d = static_cast<Fragments*>(lanes[lane])->d;
        for (int i = 0; i < 4; ++i) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = 0.0;
            for (int k = 0; k < K; ++k) sum += double(a[row][k]) * b[column][k];
            d[i] = float(d[i] + sum);
        }
    }
}

template <class T, int K>
inline void multiply(float* d, const unsigned* a, const unsigned* b, CallSite site) {
    Fragments mine = {d, a, b};
    cudasim_warp_sync(0xffffffffu, &mine, combine_multiply<T, K>, nullptr, site);
}

}  // namespace cudasim

__device__ inline void load_matrices(unsigned (&r)[1], const void* row, CUDASIM_HERE) {
    cudasim::load_matrices<1, false>(r, row, {"ldmatrix", file, line});
}

__device__ inline void load_matrices(unsigned (&r)[2], const void* row, CUDASIM_HERE) {
    cudasim::load_matrices<2, false>(r, row, {"ldmatrix", file, line});
}

__device__ inline void load_matrices(unsigned (&r)[4], const void* row, CUDASIM_HERE) {
    cudasim::load_matrices<4, false>(r, row, {"ldmatrix", file, line});
}

__device__ inline void load_matrices_transposed(unsigned (&r)[1], const void* row, CUDASIM_HERE) {
    cudasim::load_matrices<1, true>(r, row, {"ldmatrix.trans", file, line});
}

__device__ inline void load_matrices_transposed(unsigned (&r)[2], const void* row, CUDASIM_HERE) {
    cudasim::load_matrices<2, true>(r, row, {"ldmatrix.trans", file, line});
}

__device__ inline void load_matrices_transposed(unsigned (&r)[4], const void* row, CUDASIM_HERE) {
    cudasim::load_matrices<4, true>(r, row, {"ldmatrix.trans", file, line});
}

__device__ inline void multiply_half(float (&d)[4], const unsigned (&a)[2], unsigned b,
                                     CUDASIM_HERE) {
    cudasim::multiply<cudasim::Half, 8>(d, a, &b, {"mma.m16n8k8.f16", file, line});
}

__device__ inline void multiply_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                     CUDASIM_HERE) {
    cudasim::multiply<cudasim::Half, 16>(d, a, b, {"mma.m16n8k16.f16", file, line});
}

__device__ inline void multiply_bfloat16(float (&d)[4], const unsigned (&a)[2], unsigned b,
                                         CUDASIM_HERE) {
    cudasim::multiply<cudasim::Bfloat16, 8>(d, a, &b, {"mma.m16n8k8.bf16", file, line});
}

__device__ inline void multiply_bfloat16(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2], CUDASIM_HERE) {
    cudasim::multiply<cudasim::Bfloat16, 16>(d, a, b, {"mma.m16n8k16.bf16", file, line});
}

__device__ inline void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                     CUDASIM_HERE) {
    cudasim::multiply<cudasim::Tf32, 8>(d, a, b, {"mma.m16n8k8.tf32", file, line});
}

#endif
