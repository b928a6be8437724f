// ReLU and its leaky form, element by element: one thread, one number.
//
//   x, y, dx, dy   any shape, `size` numbers in all; y and dx are written (=)
//
// Blocks of 256 threads (fewer work) with at most 64 registers: 32 warps to a multiprocessor.
// These wait for memory alone; all seven ReLUs of AlexNet come here.

#include "common.cuh"

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void relu_forward(
    const float* x, float* y, int64 size) {
    int64 i = global_thread();
    if (i < size) y[i] = x[i] < 0.0f ? 0.0f : x[i];  // a NaN stays a NaN
}

// y is the result of the forward pass: positive, 0 or NaN.  It saves keeping x.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void relu_backward(
    const float* dy, const float* y, float* dx, int64 size) {
    int64 i = global_thread();
    if (i < size) dx[i] = y[i] == 0.0f ? 0.0f : dy[i];
}

// v where x is positive, slope * v elsewhere.  Forward v is x itself, backward it is dy.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void leaky_relu(
    const float* v, const float* x, float* result, float slope, int64 size) {
    int64 i = global_thread();
    if (i < size) result[i] = x[i] > 0.0f ? v[i] : slope * v[i];
}
