// Types, the geometry struct and warp reductions for all kernels.  NVRTC by itself has no CUDA or
// C++ headers, so gpucnn/cuda/declarations.py splices this file into each source that includes it.

#ifndef GPUCNN_COMMON_CUH
#define GPUCNN_COMMON_CUH

typedef long long int64;      // for offsets into whole arrays: a batch may exceed 2^31 elements
typedef unsigned char uint8;
typedef unsigned int uint32;
typedef unsigned long long uint64;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// gpucnn.ops.geometry.Geometry, field by field: kh x kw windows over images (n, h, w, c).
// Output pixel (i, j) reads rows i * stride_h - top + r * dilation_h for r in 0..kh-1; likewise
// columns.
struct Geometry {
    int n, h, w, c;
    int kh, kw;
    int oh, ow;
    int stride_h, stride_w;
    int top, bottom, left, right;
    int dilation_h, dilation_w;
    int groups;
};

__device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The flat index of this thread; 64 bits, because an activation may exceed 2^31 elements.
__device__ inline int64 global_thread() {
    return (int64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ inline int64 grid_threads() { return (int64)gridDim.x * blockDim.x; }

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

__device__ inline float nan_value() { return __int_as_float(0x7fc00000); }

// 16 bytes in one instruction; p must be 16-byte aligned.
__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

// The sum over the warp, in every lane.  The order is fixed, so the result is reproducible.
__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

// The largest value of the warp, in every lane.
__device__ inline float warp_max(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

#endif
