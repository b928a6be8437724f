// ReLU, leaky ReLU, GELU, SiLU and softplus, elementwise.
//
//   thread -> LANES adjacent elements: 16 bytes
//
// All arrays have `size` elements of type X, in any shape; y, dx and result are written (=).
//
// Blocks of 256 threads (any smaller block works), at most 64 registers a thread: 32 warps per
// multiprocessor hide the memory latency, which is all that these kernels wait for.
// A ReLU after a convolution or a dense layer is part of that kernel; the others use these.

#ifndef X
#define X float  // or half, bfloat16
#endif

#include "vector.cuh"

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void relu_forward(
    const X* x, X* y, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float v[LANES];
    load_up_to(x + first, left, v);
#pragma unroll
    for (float& value : v) value = value < 0.0f ? 0.0f : value;  // NaN passes through
    store_up_to(y + first, left, v);
}

// dx = scale * dy where y, the forward result, is positive or NaN; 0 where it is 0.  So x need not
// be kept.  scale is that of a dropout after the ReLU, whose zeros are in y too.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void relu_backward(
    const X* dy, const X* y, X* dx, float scale, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float d[LANES], v[LANES];
    load_up_to(dy + first, left, d);
    load_up_to(y + first, left, v);
#pragma unroll
    for (int i = 0; i < LANES; ++i) d[i] = v[i] == 0.0f ? 0.0f : d[i] * scale;
    store_up_to(dx + first, left, d);
}

// result = v where x > 0, slope * v elsewhere.  v is x in the forward pass, dy in the backward.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void leaky_relu(
    const X* v, const X* x, X* result, float slope, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float values[LANES], signs[LANES];
    load_up_to(v + first, left, values);
    load_up_to(x + first, left, signs);
#pragma unroll
    for (int i = 0; i < LANES; ++i)
        if (!(signs[i] > 0.0f)) values[i] *= slope;
    store_up_to(result + first, left, values);
}

constexpr float FAR = 200.0f;  // e^-FAR is 0, and 0 * infinity would be NaN

// --- GELU ---

// The normal distribution function.  1 + erf(x) would cancel for negative x.
__device__ inline float normal_cdf(float x) { return 0.5f * erfcf(-0.707106781f * x); }

// y = x * normal_cdf(x)
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void gelu_forward(
    const X* x, X* y, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float v[LANES];
    load_up_to(x + first, left, v);
#pragma unroll
    for (float& value : v) value = (value < -FAR ? -FAR : value) * normal_cdf(value);
    store_up_to(y + first, left, v);
}

// dx = dy * (normal_cdf(x) + x * the normal density at x)
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void gelu_backward(
    const X* dy, const X* x, X* dx, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float d[LANES], v[LANES];
    load_up_to(dy + first, left, d);
    load_up_to(x + first, left, v);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        float near = v[i] < -FAR ? -FAR : v[i] > FAR ? FAR : v[i];  // NaN stays
        d[i] *= normal_cdf(near) + near * (0.398942280f * expf(-0.5f * near * near));
    }
    store_up_to(dx + first, left, d);
}

// --- smooth: from e^-|x|, which never overflows and keeps small results accurate ---

// 1 / (1 + e^-x)
__device__ inline float sigmoid(float x) {
    float small = expf(-fabsf(x));
    return (x < 0.0f ? small : 1.0f) / (1.0f + small);
}

// y = x * sigmoid(x)
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void silu_forward(
    const X* x, X* y, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float v[LANES];
    load_up_to(x + first, left, v);
#pragma unroll
    for (float& value : v) value = (value < -FAR ? -FAR : value) * sigmoid(value);
    store_up_to(y + first, left, v);
}

// dx = dy * (sigmoid(x) + x * sigmoid'(x))
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void silu_backward(
    const X* dy, const X* x, X* dx, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float d[LANES], v[LANES];
    load_up_to(dy + first, left, d);
    load_up_to(x + first, left, v);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        float near = v[i] < -FAR ? -FAR : v[i] > FAR ? FAR : v[i];  // NaN stays
        float small = expf(-fabsf(near)), slope = small / ((1.0f + small) * (1.0f + small));
        d[i] *= sigmoid(near) + near * slope;
    }
    store_up_to(dx + first, left, d);
}

// y = log(1 + e^(beta x)) / beta
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void softplus_forward(
    const X* x, X* y, float beta, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float v[LANES];
    load_up_to(x + first, left, v);
#pragma unroll
    for (float& value : v)
        value = (value < 0.0f ? 0.0f : value) + log1pf(expf(-fabsf(beta * value))) / beta;
    store_up_to(y + first, left, v);
}

// dx = dy * sigmoid(beta x)
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void softplus_backward(
    const X* dy, const X* x, X* dx, float beta, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float d[LANES], v[LANES];
    load_up_to(dy + first, left, d);
    load_up_to(x + first, left, v);
#pragma unroll
    for (int i = 0; i < LANES; ++i) d[i] *= sigmoid(beta * v[i]);
    store_up_to(dx + first, left, d);
}
