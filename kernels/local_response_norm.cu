// Local response normalisation (Krizhevsky et al. 2012, section 3.3), and its gradient.
//
//   total[c] = k + alpha * sum of x[j]^2 over the neighbours j of c
//   y[c]     = x[c] * total[c]^-beta
//
// The neighbours of c are the existing channels among c - before .. c + after.  c is itself a
// neighbour of c - after .. c + before, so its gradient is a sum over those:
//
//   inner[j] = dy[j] * x[j] * total[j]^-(beta + 1)
//   dx[c]    = dy[c] * total[c]^-beta - 2 * alpha * beta * x[c] * sum of inner[j]
//
//   lrn_forward    thread -> y[c]
//   lrn_inner      thread -> inner[c]       two launches backward: a single one would compute
//   lrn_backward   thread -> dx[c]          each total before + after + 1 times
//
//   x, y, dy, dx, inner   (pixels, channels), `size` elements; written (=)
//
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.  A thread's
// neighbours are those of adjacent threads, so they come from the L1 cache.
// The AlexNet of 2012 normalises after its first two convolutions; the one for CIFAR-10 does not.

#include "common.cuh"

// The sum of values[c - before .. c + after] of one pixel, or of their squares.
template <bool SQUARE>
__device__ inline float neighbours(const float* values, int c, int channels, int before,
                                   int after) {
    float sum = 0.0f;
    for (int j = max(0, c - before); j <= min(channels - 1, c + after); ++j)
        sum += SQUARE ? values[j] * values[j] : values[j];
    return sum;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void lrn_forward(
    const float* x, float* y, int64 size, int channels, int before, int after, float alpha,
    float beta, float k) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    float total = k + alpha * neighbours<true>(x + (i - c), c, channels, before, after);
    y[i] = x[i] * powf(total, -beta);
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void lrn_inner(
    const float* dy, const float* x, float* inner, int64 size, int channels, int before, int after,
    float alpha, float beta, float k) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    float total = k + alpha * neighbours<true>(x + (i - c), c, channels, before, after);
    inner[i] = dy[i] * x[i] * powf(total, -beta) / total;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void lrn_backward(
    const float* dy, const float* x, const float* inner, float* dx, int64 size, int channels,
    int before, int after, float alpha, float beta, float k) {
    int64 i = global_thread();
    if (i >= size) return;
    int c = i % channels;
    float total = k + alpha * neighbours<true>(x + (i - c), c, channels, before, after);
    float spread = neighbours<false>(inner + (i - c), c, channels, after, before);
    dx[i] = dy[i] * powf(total, -beta) - 2.0f * alpha * beta * x[i] * spread;
}
