// Reads and writes rows of float, half or bfloat16, 16 bytes at a time, as floats in registers.

#ifndef GPUCNN_CHUNKS_CUH
#define GPUCNN_CHUNKS_CUH

#include "common.cuh"
#include "ptx.cuh"

template <class R>
constexpr int CHUNK_OF = 16 / sizeof(R);  // numbers in 16 bytes

__device__ inline void pack_chunk(float* to, const float (&v)[4]) {
    store4(to, make_float4(v[0], v[1], v[2], v[3]));
}

__device__ inline void pack_chunk(half* to, const float (&v)[8]) {
    uint4 packed = {pack_half(v[0], v[1]), pack_half(v[2], v[3]), pack_half(v[4], v[5]),
                    pack_half(v[6], v[7])};
    *reinterpret_cast<uint4*>(to) = packed;
}

__device__ inline void pack_chunk(bfloat16* to, const float (&v)[8]) {
    uint4 packed = {pack_bfloat16(v[0], v[1]), pack_bfloat16(v[2], v[3]),
                    pack_bfloat16(v[4], v[5]), pack_bfloat16(v[6], v[7])};
    *reinterpret_cast<uint4*>(to) = packed;
}

// Writes the first min(left, N) numbers of v at `to`.  `vector`: rows are multiples of 16 bytes, so
// that `to` is aligned and left >= N or left <= 0.
template <class R, int N>
__device__ inline void store_chunk(R* to, const float (&v)[N], int left, bool vector) {
    static_assert(N == CHUNK_OF<R>, "16 bytes");
    if (vector) {
        if (left > 0) pack_chunk(to, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (i < left) to[i] = from_float<R>(v[i]);
}

// Reads the first min(left, N) numbers at `from`; the others of v are 0.
template <class R, int N>
__device__ inline void load_chunk(float (&v)[N], const R* from, int left, bool vector) {
    static_assert(N == CHUNK_OF<R>, "16 bytes");
    if (vector) {
        uint4 zeros = {0, 0, 0, 0};
        union {
            uint4 whole;
            R parts[N];
        } u = {left > 0 ? *reinterpret_cast<const uint4*>(from) : zeros};
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = to_float(u.parts[i]);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = i < left ? to_float(from[i]) : 0.0f;
}

#endif
