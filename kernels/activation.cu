// ReLU and leaky ReLU, elementwise.
//
//   thread -> one element
//
// All arrays have `size` elements, in any shape; y, dx and result are written (=).
//
// Blocks of 256 threads (any smaller block works), at most 64 registers a thread: 32 warps per
// multiprocessor hide the memory latency, which is all that these kernels wait for.
// All seven ReLUs of AlexNet use these kernels.

#include "common.cuh"

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void relu_forward(
    const float* x, float* y, int64 size) {
    int64 i = global_thread();
    if (i < size) y[i] = x[i] < 0.0f ? 0.0f : x[i];  // NaN passes through
}

// Reads y, the forward result (positive, 0 or NaN), so that x need not be kept.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void relu_backward(
    const float* dy, const float* y, float* dx, int64 size) {
    int64 i = global_thread();
    if (i < size) dx[i] = y[i] == 0.0f ? 0.0f : dy[i];
}

// result = v where x > 0, slope * v elsewhere.  v is x in the forward pass, dy in the backward.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void leaky_relu(
    const float* v, const float* x, float* result, float slope, int64 size) {
    int64 i = global_thread();
    if (i < size) result[i] = x[i] > 0.0f ? v[i] : slope * v[i];
}
