// Four neighbours in an array of float, half or bfloat16, for kernels that compute in float.

#ifndef GPUCNN_QUADS_CUH
#define GPUCNN_QUADS_CUH

#include "common.cuh"
#include "ptx.cuh"

// As loaded: they become floats where they are used, because a conversion at the load would wait for
// memory.  load(p, left) reads the first min(left, 4) at p, and the others are zeros; left <= 0
// touches no memory.  VECTOR: left is a multiple of 4, and p is aligned to four elements.
template <class E, bool VECTOR>
struct Quad {
    E v[4];

    static __device__ inline Quad load(const E* p, int left) {
        Quad quad = {};
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (left > i) quad.v[i] = p[i];
        return quad;
    }

    __device__ inline float4 floats() const {
        return make_float4(to_float(v[0]), to_float(v[1]), to_float(v[2]), to_float(v[3]));
    }
};

template <class E>
struct Quad<E, true> {  // of 16 bits
    uint2 pairs;

    static __device__ inline Quad load(const E* p, int left) {
        Quad quad = {};
        if (left > 0) quad.pairs = *reinterpret_cast<const uint2*>(p);
        return quad;
    }

    __device__ inline float4 floats() const {
        return make_float4(to_float(E{(unsigned short)(pairs.x & 0xffffu)}),
                           to_float(E{(unsigned short)(pairs.x >> 16)}),
                           to_float(E{(unsigned short)(pairs.y & 0xffffu)}),
                           to_float(E{(unsigned short)(pairs.y >> 16)}));
    }
};

template <>
struct Quad<float, true> {
    float4 four;

    static __device__ inline Quad load(const float* p, int left) {
        Quad quad = {make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
        if (left > 0) quad.four = load4(p);
        return quad;
    }

    __device__ inline float4 floats() const { return four; }
};

#endif
