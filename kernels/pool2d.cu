// Max and average pooling, forward and backward: one thread computes one element by gathering.
//
//   forward    thread -> y[n, i, j, c]     reads its window of x
//   backward   thread -> dx[n, h, w, c]    reads dy of the windows over this pixel, at most
//                                          ceil(kh / stride) x ceil(kw / stride); a gather needs
//                                          no atomics
//
//   x, dx   (N, H, W, C)       y, dy   (N, OH, OW, C)      written (=)
//   argmax  (N, OH, OW, C) int32: position of the winner inside its window, r * kw + s
//
// Grid: x covers the elements of one image, y the images (with a stride loop, as a grid has at most
// 65535 rows); blocks of 256 threads (any smaller block works).  Adjacent threads own adjacent
// channels, so a warp's accesses are coalesced.  One image has fewer than 2^31 elements.
// Threads have at most 64 registers each: 32 warps per multiprocessor hide the memory latency,
// which is all that pooling waits for.  All three pools of AlexNet use these kernels.

#include "common.cuh"

struct Element {
    int row, column, channel;
};

// Element `index` of an image with this many columns and channels.
__device__ inline Element element_at(int index, int columns, int channels) {
    int pixel = index / channels;
    return Element{pixel / columns, pixel % columns, index % channels};
}

// Calls see(row, column, position in the window) for each pixel of output `at`'s window that is on
// the image, in row order.
template <class See>
__device__ inline void each_in_window(const Element& at, const Geometry& g, See see) {
    int row0 = at.row * g.stride_h - g.top, column0 = at.column * g.stride_w - g.left;
#pragma unroll 1
    for (int r = max(0, -row0); r < min(g.kh, g.h - row0); ++r)
#pragma unroll 2
        for (int s = max(0, -column0); s < min(g.kw, g.w - column0); ++s)
            see(row0 + r, column0 + s, r * g.kw + s);
}

// The windows over pixel `at` along one axis: first .. last, inclusive.
struct Span {
    int first, last;
};

__device__ inline Span windows_over(int at, int before, int size, int stride, int outputs) {
    int reach = at + before - size;  // start of the last window that ends before `at`
    return Span{reach < 0 ? 0 : reach / stride + 1, min((at + before) / stride, outputs - 1)};
}

// Calls see(i, j, position in that window) for each window (i, j) over pixel `at`.
template <class See>
__device__ inline void each_window_over(const Element& at, const Geometry& g, See see) {
    Span rows = windows_over(at.row, g.top, g.kh, g.stride_h, g.oh);
    Span columns = windows_over(at.column, g.left, g.kw, g.stride_w, g.ow);
#pragma unroll 1  // one or two iterations: unrolling would cost registers
    for (int i = rows.first; i <= rows.last; ++i)
#pragma unroll 1
        for (int j = columns.first; j <= columns.last; ++j)
            see(i, j,
                (at.row + g.top - i * g.stride_h) * g.kw + at.column + g.left - j * g.stride_w);
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void max_pool2d_forward(
    const float* x, float* y, int* argmax, Geometry g) {  // argmax may be null
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    int image = g.oh * g.ow * g.c;
    if (index >= image) return;
    Element at = element_at(index, g.ow, g.c);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        const float* pixels = x + n * g.h * g.w * g.c + at.channel;
        float best = -infinity();
        int winner = -1;
        each_in_window(at, g, [&](int row, int column, int position) {
            float value = pixels[(row * g.w + column) * g.c];
            // `>` keeps the first of equal values; a NaN beats all numbers, the last NaN wins.
            if (winner < 0 || value > best || isnan(value)) {
                best = value;
                winner = position;
            }
        });
        y[n * image + index] = best;
        if (argmax) argmax[n * image + index] = winner;
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void max_pool2d_backward(
    const float* dy, const int* argmax, float* dx, Geometry g) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    int image = g.h * g.w * g.c;
    if (index >= image) return;
    Element at = element_at(index, g.w, g.c);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        int64 start = n * g.oh * g.ow * g.c + at.channel;
        float sum = 0.0f;
        each_window_over(at, g, [&](int i, int j, int position) {
            int64 output = start + (i * g.ow + j) * g.c;
            if (argmax[output] == position) sum += dy[output];
        });
        dx[n * image + index] = sum;
    }
}

// The divisor of the mean at output (i, j).  Padding counts if `padding`; what a window covers
// beyond the requested padding (`bottom`, `right`) never counts.
__device__ inline int counted(int i, int j, const Geometry& g, int padding, int bottom, int right) {
    int row = i * g.stride_h - g.top, column = j * g.stride_w - g.left;
    int rows = padding ? min(row + g.kh, g.h + bottom) - row
                       : min(row + g.kh, g.h) - max(row, 0);
    int columns = padding ? min(column + g.kw, g.w + right) - column
                          : min(column + g.kw, g.w) - max(column, 0);
    return rows * columns;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void avg_pool2d_forward(
    const float* x, float* y, Geometry g, int padding, int bottom, int right) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    int image = g.oh * g.ow * g.c;
    if (index >= image) return;
    Element at = element_at(index, g.ow, g.c);
    int count = counted(at.row, at.column, g, padding, bottom, right);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        const float* pixels = x + n * g.h * g.w * g.c + at.channel;
        float sum = 0.0f;
        each_in_window(at, g, [&](int row, int column, int) {
            sum += pixels[(row * g.w + column) * g.c];
        });
        y[n * image + index] = sum / count;
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void avg_pool2d_backward(
    const float* dy, float* dx, Geometry g, int padding, int bottom, int right) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    int image = g.h * g.w * g.c;
    if (index >= image) return;
    Element at = element_at(index, g.w, g.c);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        int64 start = n * g.oh * g.ow * g.c + at.channel;
        float sum = 0.0f;
        each_window_over(at, g, [&](int i, int j, int) {
            sum += dy[start + (i * g.ow + j) * g.c] / counted(i, j, g, padding, bottom, right);
        });
        dx[n * image + index] = sum;
    }
}
