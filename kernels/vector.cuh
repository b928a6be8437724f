// What the memory-bound kernels share: 16 bytes in one access, and division by a number that the
// host knows.
//
// Activations have the type X, a macro: float, half or bfloat16.  A thread owns LANES adjacent
// ones, 16 bytes, if the channels and the addresses allow it, else one.

#ifndef GPUCNN_VECTOR_CUH
#define GPUCNN_VECTOR_CUH

#include "elements.cuh"

constexpr int LANES = 16 / (int)sizeof(X);

// --- N adjacent numbers: one, or four floats, four or eight halves ---

// v = from[0 .. N - 1]; from is aligned to N numbers.
template <int N, class E>
__device__ inline void load(const E* from, float (&v)[N]) {
    if constexpr (N * sizeof(E) == 16) {
        uint4 raw = *reinterpret_cast<const uint4*>(from);
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if constexpr (sizeof(E) == 4) v[i] = __uint_as_float(words[i]);
            else v[i] = to_float(E{(unsigned short)(words[i / 2] >> i % 2 * 16)});
        }
    } else if constexpr (N == 4) {
        float4 four = load_four<E>(from);
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else if constexpr (N == 8) {  // float parameters beside eight halves
        float4 low = load_four<E>(from), high = load_four<E>(from + 4);
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    } else {
        static_assert(N == 1, "");
        v[0] = to_float(*from);
    }
}

__device__ inline unsigned packed(half, float low, float high) { return pack_half(low, high); }

__device__ inline unsigned packed(bfloat16, float low, float high) {
    return pack_bfloat16(low, high);
}

// to[0 .. N - 1] = v, rounded; to is aligned to N numbers.
template <int N, class E>
__device__ inline void store(E* to, const float (&v)[N]) {
    if constexpr (N * sizeof(E) == 16) {
        unsigned words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(E) == 4) words[i] = __float_as_uint(v[i]);
            else words[i] = packed(E(), v[2 * i], v[2 * i + 1]);
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else if constexpr (N == 4) {
        store_four(to, make_float4(v[0], v[1], v[2], v[3]));
    } else if constexpr (N == 8) {
        store_four(to, make_float4(v[0], v[1], v[2], v[3]));
        store_four(to + 4, make_float4(v[4], v[5], v[6], v[7]));
    } else {
        static_assert(N == 1, "");
        *to = from_float<E>(v[0]);
    }
}

// The same for an array's end and for any address: only the first `left` numbers exist.
template <class E>
__device__ inline void load_up_to(const E* from, int64 left, float (&v)[LANES]) {
    if (left >= LANES && (uint64)from % (LANES * sizeof(E)) == 0) {
        load(from, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i) v[i] = i < left ? to_float(from[i]) : 0.0f;
}

template <class E>
__device__ inline void store_up_to(E* to, int64 left, const float (&v)[LANES]) {
    if (left >= LANES && (uint64)to % (LANES * sizeof(E)) == 0) {
        store(to, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES; ++i)
        if (i < left) to[i] = from_float<E>(v[i]);
}

// --- division ---

// gpucnn.ops._kernels.Divisor: n / divisor by a product and a shift, for 0 <= n < 2^31.
// Source: Granlund and Montgomery 1994, "Division by invariant integers using multiplication".
struct Divisor {
    int divisor, multiplier, shift;
};

__device__ inline int divide(int n, const Divisor& by) {
    return (int)((__umulhi((uint32)n, (uint32)by.multiplier) + (uint32)n) >> by.shift);
}

__device__ inline int remainder(int n, const Divisor& by) {
    return n - divide(n, by) * by.divisor;
}

#endif
