// Max and average pooling, forward and backward.
//
//   forward    thread -> y[n, i, j, c ..]     reads its window of x
//   backward   thread -> dx[n, h, w, c ..]    reads dy of the windows over this pixel, at most
//                                             ceil(kh / stride) x ceil(kw / stride); a gather needs
//                                             no atomics
//   backward of max pooling, windows side by side (stride >= kernel size):
//              thread -> a cell of dx         stride_h x stride_w pixels from a window's first on;
//                                             dy is read once, and what no window covers is 0
//
//   x, dx    (N, H, W, C)       y, dy   (N, OH, OW, C)      type X, written (=)
//   winners  (N, OH, OW, C) WINNER: position of the largest value inside its window, r * kw + s
//
// A thread owns N adjacent channels: LANES (16 bytes), or one where those do not divide C.
// Grid: x covers the elements of one image, y the images (with a stride loop, as a grid has at most
// 65535 rows); blocks of 256 threads (any smaller block works).  Adjacent threads own adjacent
// channels, so a warp's accesses are coalesced.  One image has fewer than 2^31 elements.
// Threads have at most 64 registers each: 32 warps per multiprocessor hide the memory latency,
// which is all that pooling waits for.  All three pools of AlexNet use these kernels.

#ifndef X
#define X float  // or half, bfloat16
#endif
#ifndef WINNER
#define WINNER uint8  // or int, for windows of more than 255 pixels
#endif

#include "image_elements.cuh"

// Whether threads own LANES channels each.
__device__ inline bool vector(const Geometry& g, const Divisor& groups) {
    return groups.divisor < g.c;
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

__device__ inline Span windows_over(int at, int before, int size, const Divisor& stride,
                                    int outputs) {
    int reach = at + before - size;  // start of the last window that ends before `at`
    return Span{reach < 0 ? 0 : divide(reach, stride) + 1,
                min(divide(at + before, stride), outputs - 1)};
}

// Calls see(i, j, position in that window) for each window (i, j) over pixel `at`.
template <class See>
__device__ inline void each_window_over(const Element& at, const Geometry& g,
                                        const Divisor& stride_h, const Divisor& stride_w, See see) {
    Span rows = windows_over(at.row, g.top, g.kh, stride_h, g.oh);
    Span columns = windows_over(at.column, g.left, g.kw, stride_w, g.ow);
#pragma unroll 1  // one or two iterations: unrolling would cost registers
    for (int i = rows.first; i <= rows.last; ++i)
#pragma unroll 1
        for (int j = columns.first; j <= columns.last; ++j)
            see(i, j,
                (at.row + g.top - i * g.stride_h) * g.kw + at.column + g.left - j * g.stride_w);
}

// --- max ---

// N winners in one access, or two.
template <int N>
__device__ inline void load_winners(const uint8* from, int (&winner)[N]) {
    if constexpr (N == 1) {
        winner[0] = *from;
    } else {
        const unsigned* words = reinterpret_cast<const unsigned*>(from);
        unsigned word[N / 4];
        if constexpr (N == 8) {
            uint2 pair = *reinterpret_cast<const uint2*>(words);
            word[0] = pair.x, word[1] = pair.y;
        } else {
            word[0] = *words;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) winner[i] = (int)(word[i / 4] >> i % 4 * 8 & 255u);
    }
}

template <int N>
__device__ inline void load_winners(const int* from, int (&winner)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) winner[i] = from[i];
}

template <int N>
__device__ inline void store_winners(uint8* to, const int (&winner)[N]) {
    if constexpr (N == 1) {
        *to = (uint8)winner[0];
    } else {
        unsigned word[N / 4] = {};
#pragma unroll
        for (int i = 0; i < N; ++i) word[i / 4] |= (unsigned)winner[i] << i % 4 * 8;
        if constexpr (N == 8) *reinterpret_cast<uint2*>(to) = make_uint2(word[0], word[1]);
        else *reinterpret_cast<unsigned*>(to) = word[0];
    }
}

template <int N>
__device__ inline void store_winners(int* to, const int (&winner)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = winner[i];
}

template <int N>
__device__ inline void max_forward(const X* x, X* y, WINNER* winners, const Geometry& g,
                                   const Divisor& groups, const Divisor& columns) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= g.oh * g.ow * groups.divisor) return;
    Element at = element_at<N>(index, groups, columns);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        const X* pixels = x + n * g.h * g.w * g.c + at.channel;
        float best[N];
        int winner[N];
#pragma unroll
        for (int i = 0; i < N; ++i) winner[i] = -1;
        each_in_window(at, g, [&](int row, int column, int position) {
            float value[N];
            load(pixels + (row * g.w + column) * g.c, value);
            // `>` keeps the first of equal values; a NaN beats all numbers, the last NaN wins.
#pragma unroll
            for (int i = 0; i < N; ++i)
                if (winner[i] < 0 || value[i] > best[i] || isnan(value[i])) {
                    best[i] = value[i];
                    winner[i] = position;
                }
        });
        int64 output = n * g.oh * g.ow * g.c + (int64)index * N;
        store(y + output, best);
        if (winners) store_winners(winners + output, winner);
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void max_pool2d_forward(
    const X* x, X* y, WINNER* winners, Geometry g,  // winners may be null
    Divisor groups, Divisor columns) {
    if (vector(g, groups)) max_forward<LANES>(x, y, winners, g, groups, columns);
    else max_forward<1>(x, y, winners, g, groups, columns);
}

// d = N gradients of outputs, each times `scale` and 0 where the output is 0; y may be null.
template <int N>
__device__ inline void masked(const X* dy, const X* y, int64 output, float scale, float (&d)[N]) {
    load(dy + output, d);
    if (!y) return;
    float v[N];
    load(y + output, v);
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] = v[i] == 0.0f ? 0.0f : d[i] * scale;
}

template <int N>
__device__ inline void max_backward(const X* dy, const X* y, const WINNER* winners, X* dx,
                                    float scale, const Geometry& g, const Divisor& groups,
                                    const Divisor& columns, const Divisor& stride_h,
                                    const Divisor& stride_w) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= g.h * g.w * groups.divisor) return;
    Element at = element_at<N>(index, groups, columns);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        int64 start = n * g.oh * g.ow * g.c + at.channel;
        float sum[N] = {};
        each_window_over(at, g, stride_h, stride_w, [&](int i, int j, int position) {
            int64 output = start + (i * g.ow + j) * g.c;
            float d[N];
            int winner[N];
            load_winners(winners + output, winner);
            masked(dy, y, output, scale, d);
#pragma unroll
            for (int k = 0; k < N; ++k)
                if (winner[k] == position) sum[k] += d[k];
        });
        store(dx + n * g.h * g.w * g.c + (int64)index * N, sum);
    }
}

// dx gathers dy * scale from the windows that each pixel won.  y, or null, is the pooled result: no
// gradient passes where it is 0, because the ReLU before the pooling would stop it there.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void max_pool2d_backward(
    const X* dy, const X* y, const WINNER* winners, X* dx, float scale, Geometry g,
    Divisor groups, Divisor columns, Divisor stride_h, Divisor stride_w) {
    if (vector(g, groups))
        max_backward<LANES>(dy, y, winners, dx, scale, g, groups, columns, stride_h, stride_w);
    else
        max_backward<1>(dy, y, winners, dx, scale, g, groups, columns, stride_h, stride_w);
}

template <int N>
__device__ inline void max_backward_cells(const X* dy, const X* y, const WINNER* winners, X* dx,
                                          float scale, const Geometry& g, int cells,
                                          const Divisor& groups, const Divisor& columns) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= cells) return;
    Element at = element_at<N>(index, groups, columns);
    int row0 = at.row * g.stride_h - g.top, column0 = at.column * g.stride_w - g.left;
    bool window = at.row < g.oh && at.column < g.ow;  // else the cell is beyond the last window
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        float d[N] = {};
        int winner[N] = {};
        if (window) {
            int64 output = ((n * g.oh + at.row) * g.ow + at.column) * g.c + at.channel;
            load_winners(winners + output, winner);
            masked(dy, y, output, scale, d);
        }
        X* pixels = dx + n * g.h * g.w * g.c + at.channel;
#pragma unroll 1
        for (int r = max(0, -row0); r < min(g.stride_h, g.h - row0); ++r)
#pragma unroll 2
            for (int s = max(0, -column0); s < min(g.stride_w, g.w - column0); ++s) {
                int position = s < g.kw ? r * g.kw + s : -1;
                float part[N];
#pragma unroll
                for (int k = 0; k < N; ++k) part[k] = winner[k] == position ? d[k] : 0.0f;
                store(pixels + ((row0 + r) * g.w + column0 + s) * g.c, part);
            }
    }
}

// The same for windows side by side.  `cells` of an image, in groups of N channels: `columns` wide,
// ceil((H + top) / stride_h) high.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void max_pool2d_backward_cells(
    const X* dy, const X* y, const WINNER* winners, X* dx, float scale, Geometry g, int cells,
    Divisor groups, Divisor columns) {
    if (vector(g, groups))
        max_backward_cells<LANES>(dy, y, winners, dx, scale, g, cells, groups, columns);
    else
        max_backward_cells<1>(dy, y, winners, dx, scale, g, cells, groups, columns);
}

// --- average ---

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

template <int N>
__device__ inline void avg_forward(const X* x, X* y, const Geometry& g, int padding, int bottom,
                                   int right, const Divisor& groups, const Divisor& columns) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= g.oh * g.ow * groups.divisor) return;
    Element at = element_at<N>(index, groups, columns);
    int count = counted(at.row, at.column, g, padding, bottom, right);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        const X* pixels = x + n * g.h * g.w * g.c + at.channel;
        float sum[N] = {};
        each_in_window(at, g, [&](int row, int column, int) {
            float value[N];
            load(pixels + (row * g.w + column) * g.c, value);
#pragma unroll
            for (int i = 0; i < N; ++i) sum[i] += value[i];
        });
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] /= count;
        store(y + n * g.oh * g.ow * g.c + (int64)index * N, sum);
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void avg_pool2d_forward(
    const X* x, X* y, Geometry g, int padding, int bottom, int right, Divisor groups,
    Divisor columns) {
    if (vector(g, groups))
        avg_forward<LANES>(x, y, g, padding, bottom, right, groups, columns);
    else
        avg_forward<1>(x, y, g, padding, bottom, right, groups, columns);
}

template <int N>
__device__ inline void avg_backward(const X* dy, X* dx, const Geometry& g, int padding, int bottom,
                                    int right, const Divisor& groups, const Divisor& columns,
                                    const Divisor& stride_h, const Divisor& stride_w) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= g.h * g.w * groups.divisor) return;
    Element at = element_at<N>(index, groups, columns);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        int64 start = n * g.oh * g.ow * g.c + at.channel;
        float sum[N] = {};
        each_window_over(at, g, stride_h, stride_w, [&](int i, int j, int) {
            float d[N];
            load(dy + start + (i * g.ow + j) * g.c, d);
            int count = counted(i, j, g, padding, bottom, right);
#pragma unroll
            for (int k = 0; k < N; ++k) sum[k] += d[k] / count;
        });
        store(dx + n * g.h * g.w * g.c + (int64)index * N, sum);
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void avg_pool2d_backward(
    const X* dy, X* dx, Geometry g, int padding, int bottom, int right, Divisor groups,
    Divisor columns, Divisor stride_h, Divisor stride_w) {
    if (vector(g, groups))
        avg_backward<LANES>(dy, dx, g, padding, bottom, right, groups, columns, stride_h, stride_w);
    else
        avg_backward<1>(dy, dx, g, padding, bottom, right, groups, columns, stride_h, stride_w);
}
