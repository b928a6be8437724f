// Resizing of images: nearest neighbour or bilinear, and the gradient.
//
//   interpolate_forward    thread -> y[n, i, j, c ..]     reads one pixel of x, or four
//   interpolate_backward   thread -> dx[n, h, w, c ..]    gathers dy of the outputs that read this
//                                                         pixel, in order: no atomics
//
//   outputs   0   1   2   3   4   5        output i reads x at s(i), which lies between two pixels
//   pixels      0       1       2          and does not decrease: so pixel h is read by a range of
//                                          outputs, found from s's inverse and checked one by one
//
//   x, dx  (N, H, W, C)      y, dy  (N, OH, OW, C)      type X, written (=)
//
// A thread owns N adjacent channels: LANES (16 bytes), or one where those do not divide C.
// Grid: x covers the elements of one image, y the images (with a stride loop, as a grid has at most
// 65535 rows); blocks of 256 threads.  Adjacent threads own adjacent channels, so a warp's accesses
// are coalesced.  One image has fewer than 2^31 elements, a side at most 2^22 pixels.
// Threads have at most 64 registers each: 32 warps per multiprocessor hide the memory latency.  The
// forward pass keeps four pixels: at most 80 registers a thread: 24 warps.
// No AlexNet uses these; decoders and networks that add maps of several sizes do.

#ifndef X
#define X float  // or half, bfloat16
#endif

#include "image_elements.cuh"

enum Mode { NEAREST, BILINEAR, ALIGNED };  // ALIGNED: bilinear, corner pixels on corner pixels

// gpucnn.ops.interpolate._Resize, field by field.
struct Resize {
    int n, h, w, c;
    int oh, ow;
    int mode;
};

// An output is x[first] * (1 - share) + x[second] * share.
struct Taps {
    int first, second;
    float share;
};

// What output `at` reads along an axis of `size` pixels; scale is the distance of adjacent outputs.
__device__ inline Taps taps_of(int at, int size, float scale, int mode) {
    if (mode == NEAREST) {
        int pixel = min((int)__fmul_rn((float)at, scale), size - 1);
        return Taps{pixel, pixel, 0.0f};
    }
    float s = mode == ALIGNED ? scale * at : fmaxf(scale * (at + 0.5f) - 0.5f, 0.0f);
    int first = min((int)s, size - 1);
    return Taps{first, min(first + 1, size - 1), s - first};
}

template <int N>
__device__ inline void forward(const X* x, X* y, const Resize& g, float scale_h, float scale_w,
                               const Divisor& groups, const Divisor& columns) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= g.oh * g.ow * groups.divisor) return;
    Element at = element_at<N>(index, groups, columns);
    Taps rows = taps_of(at.row, g.h, scale_h, g.mode);
    Taps across = taps_of(at.column, g.w, scale_w, g.mode);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        const X* pixels = x + n * g.h * g.w * g.c + at.channel;
        float v[N];
        load(pixels + (rows.first * g.w + across.first) * g.c, v);
        if (g.mode != NEAREST) {
            float right[N], below[N], diagonal[N];
            load(pixels + (rows.first * g.w + across.second) * g.c, right);
            load(pixels + (rows.second * g.w + across.first) * g.c, below);
            load(pixels + (rows.second * g.w + across.second) * g.c, diagonal);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                float upper = v[i] * (1.0f - across.share) + right[i] * across.share;
                float lower = below[i] * (1.0f - across.share) + diagonal[i] * across.share;
                v[i] = upper * (1.0f - rows.share) + lower * rows.share;
            }
        }
        store(y + n * g.oh * g.ow * g.c + (int64)index * N, v);
    }
}

extern "C" __global__ __launch_bounds__(256, 3) wide_offsets void interpolate_forward(
    const X* x, X* y, Resize g, float scale_h, float scale_w, Divisor groups, Divisor columns) {
    if (groups.divisor < g.c) forward<LANES>(x, y, g, scale_h, scale_w, groups, columns);
    else forward<1>(x, y, g, scale_h, scale_w, groups, columns);
}

// Outputs begin .. end - 1 include all that read pixel `at`, and a few others.
struct Span {
    int begin, end;
};

__device__ inline Span readers(int at, int outputs, float scale, int mode) {
    if (scale == 0.0f) return Span{0, outputs};  // all read pixel 0
    float shift = mode == BILINEAR ? 0.5f : 0.0f;  // s(i) = scale * (i + shift) - shift
    float before = (at - 1 + shift) / scale - shift, after = (at + 1 + shift) / scale - shift;
    return Span{max((int)before - 2, 0), (int)fminf(after + 3.0f, (float)outputs)};
}

// The share of pixel `at` in an output with these taps; false if it has none.
__device__ inline bool share_of(int at, const Taps& taps, float& share) {
    share = (taps.first == at ? 1.0f - taps.share : 0.0f) +
            (taps.second == at ? taps.share : 0.0f);
    return taps.first == at || taps.second == at;
}

template <int N>
__device__ inline void backward(const X* dy, X* dx, const Resize& g, float scale_h, float scale_w,
                                const Divisor& groups, const Divisor& columns) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= g.h * g.w * groups.divisor) return;
    Element at = element_at<N>(index, groups, columns);
    Span rows = readers(at.row, g.oh, scale_h, g.mode);
    Span across = readers(at.column, g.ow, scale_w, g.mode);
    for (int64 n = blockIdx.y; n < g.n; n += gridDim.y) {
        const X* pixels = dy + n * g.oh * g.ow * g.c + at.channel;
        float sum[N] = {}, by_row, by_column;
#pragma unroll 1
        for (int i = rows.begin; i < rows.end; ++i) {
            if (!share_of(at.row, taps_of(i, g.h, scale_h, g.mode), by_row)) continue;
#pragma unroll 1
            for (int j = across.begin; j < across.end; ++j) {
                if (!share_of(at.column, taps_of(j, g.w, scale_w, g.mode), by_column)) continue;
                float d[N];
                load(pixels + (i * g.ow + j) * g.c, d);
#pragma unroll
                for (int k = 0; k < N; ++k) sum[k] += d[k] * (by_row * by_column);
            }
        }
        store(dx + n * g.h * g.w * g.c + (int64)index * N, sum);
    }
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void interpolate_backward(
    const X* dy, X* dx, Resize g, float scale_h, float scale_w, Divisor groups, Divisor columns) {
    if (groups.divisor < g.c) backward<LANES>(dy, dx, g, scale_h, scale_w, groups, columns);
    else backward<1>(dy, dx, g, scale_h, scale_w, groups, columns);
}
