// Elements of tensors: float, half or bfloat16 in memory, float in registers.  A kernel that takes
// its element types from `defines` loads and stores through these functions, and through to_float
// and from_float (ptx.cuh); for float they are plain loads and stores.

#ifndef GPUCNN_ELEMENTS_CUH
#define GPUCNN_ELEMENTS_CUH

#include "common.cuh"
#include "ptx.cuh"

// v rounded to the precision of R.
template <class R>
__device__ inline float4 rounded(float4 v) {
    return make_float4(to_float(from_float<R>(v.x)), to_float(from_float<R>(v.y)),
                       to_float(from_float<R>(v.z)), to_float(from_float<R>(v.w)));
}

// *p, rounded to R if that has fewer bits.
template <class R, class E>
__device__ inline float load_element(const E* p) {
    if constexpr (sizeof(R) < sizeof(E)) return to_float(from_float<R>(to_float(*p)));
    return to_float(*p);
}

// Four elements in one instruction, each rounded to R if that has fewer bits; p is aligned to four
// elements.
template <class R, class E>
__device__ inline float4 load_four(const E* p) {
    if constexpr (sizeof(E) == 2) {
        uint2 pairs = *reinterpret_cast<const uint2*>(p);
        return make_float4(to_float(E{(unsigned short)pairs.x}),
                           to_float(E{(unsigned short)(pairs.x >> 16)}),
                           to_float(E{(unsigned short)pairs.y}),
                           to_float(E{(unsigned short)(pairs.y >> 16)}));
    } else {
        return rounded<R>(load4(p));
    }
}

__device__ inline void store_four(float* p, float4 v) { store4(p, v); }

template <class E>
__device__ inline void store_four(E* p, float4 v) {
    *reinterpret_cast<uint2*>(p) =
        make_uint2(pack(from_float<E>(v.x), from_float<E>(v.y)),
                   pack(from_float<E>(v.z), from_float<E>(v.w)));
}

#endif
