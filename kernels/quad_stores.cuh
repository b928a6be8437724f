// The results of the CUDA-core kernels, four neighbours at a time, as elements of an array in float,
// half or bfloat16.  quads.cuh has the loads.

#ifndef GPUCNN_QUAD_STORES_CUH
#define GPUCNN_QUAD_STORES_CUH

#include "common.cuh"
#include "elements.cuh"
#include "quads.cuh"

// Stores the first min(left, 4) of v at p; `vector`: p is aligned to four elements.
template <class E>
__device__ inline void store_elements(E* p, const float* v, int left, bool vector) {
    if (vector && left >= 4) {
        store_four(p, make_float4(v[0], v[1], v[2], v[3]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < left) p[i] = from_float<E>(v[i]);
}

// Multiplies v by scale where the first min(left, 4) elements at p are not 0, and sets it to 0 where
// they are; NaN is not 0.  VECTOR: left is a multiple of 4, and p is aligned to four elements.
template <bool VECTOR, class E>
__device__ inline void mask_elements(float* v, const E* p, int left, float scale) {
    float4 x = Quad<E, VECTOR>::load(p, left).floats();
    v[0] = x.x == 0.0f ? 0.0f : scale * v[0];
    v[1] = x.y == 0.0f ? 0.0f : scale * v[1];
    v[2] = x.z == 0.0f ? 0.0f : scale * v[2];
    v[3] = x.w == 0.0f ? 0.0f : scale * v[3];
}

#endif
