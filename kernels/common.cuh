// What every kernel shares.  gpucnn/cuda/launcher.py splices this file in where a kernel includes it, so
// that the text which NVRTC compiles is complete: bare NVRTC has no CUDA or C++ header.

#ifndef GPUCNN_COMMON_CUH
#define GPUCNN_COMMON_CUH

typedef long long int64;      // offsets into whole arrays: a batch may pass 2^31 elements
typedef unsigned int uint32;
typedef unsigned long long uint64;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// gpucnn.ops.window.Geometry, field by field: windows of kh x kw pixels over images (n, h, w, c).
// Output pixel (i, j) sees rows i * stride_h - top + r * dilation_h, r in 0..kh-1; columns alike.
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

// The flat index of this thread: 64 bits, as 2^31 threads are one large activation.
__device__ inline int64 global_thread() {
    return (int64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ inline int64 grid_threads() { return (int64)gridDim.x * blockDim.x; }

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

__device__ inline float nan_value() { return __int_as_float(0x7fc00000); }

// 16 bytes in one instruction; the pointer must be a multiple of 16.
__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

// The sum over a warp, in every lane.  The order is fixed, so the bits are too.
__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

#endif
