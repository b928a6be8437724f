// dx, the gradient of a convolution's input, as one matrix product per phase:
//
//     DX (M x C)  =  DY (M x K)  *  WEIGHT (K x C)      K = the phase's live taps * OC
//
// Tap r reaches input pixel h from output (h + top - r * dilation) / stride, if that division is
// exact.  With stride 2, three of four taps are dead, and which ones depends only on h % 2 and
// w % 2.  A phase is the set of pixels with equal remainders.  They have the same live taps, whose
// outputs lie at fixed distances, as if the stride were 1.  With stride 1 there is one phase and
// every tap is live.
//
//   block   TM pixels of one phase x TN channels of one group
//           grid: pixel tiles of the largest phase, channel tiles, groups * stride_h * stride_w
//   warp    32 pixels x 64 channels
//   thread  8 x 8 results (gemm_tile.cuh)
//   step    8 of K: 8 filters of one tap
//
//   dy      (N, OH, OW, OC) ELEMENT         one pixel: `filters` contiguous numbers
//   weight  (OC, KH, KW, channels) float    one tap: `channels` contiguous numbers
//   mask    (N, H, W, C) IMAGE, or null     dx = mask_scale * dx where mask is not 0, else 0: the
//                                           gradient of a ReLU, and of its dropout, whose result
//                                           is the convolution's input
//   dx      (N, H, W, C) IMAGE              written (=), with zeros where no output reads the pixel
//   channels = C / groups, filters = OC / groups: those of one group
//
// IMAGE and ELEMENT are float, half or bfloat16.  Operands have the precision of ELEMENT: weight is
// rounded to it when it has been loaded.  Sums are float.
//
//   vector  channels and filters divisible by 4, at most 2^32 numbers in dy: loads of 4 numbers
//   scalar  any number
// Both need kh + kw <= 31, and fewer than 2^31 - 128 pixels, numbers in one image of dy, and
// numbers in weight; the plain kernel handles anything larger.
//
// 128 x 128: 256 threads, at most 128 registers each: 16 warps per multiprocessor.
// 128 x 64: 128 threads, at most 168 registers each: 12 warps per multiprocessor.
// All layers of AlexNet but the first use them.

#include "common.cuh"
#include "conv2d_phases.cuh"
#include "gemm_tile.cuh"
#include "quad_stores.cuh"
#include "quads.cuh"

#ifndef IMAGE
#define IMAGE float
#endif
#ifndef ELEMENT
#define ELEMENT float
#endif

template <int TM, int TN, bool VECTOR>
__device__ inline void grad_input(const ELEMENT* dy, const float* weight, const IMAGE* mask,
                                  IMAGE* dx, const Geometry& g, int channels, int filters,
                                  float mask_scale) {
    using Size = Tile<TM, TN>;
    static_assert(Size::B_QUADS == 1, "a step's filters are one load per thread");
    __shared__ SharedTile<TM, TN> tiles[2];
    __shared__ Tap taps[MAX_TAPS];
    __shared__ Phase phase;
    if (threadIdx.x == 0) phase = phase_of(blockIdx.z, g);
    __syncthreads();
    if (blockIdx.x * TM >= phase.pixels) return;  // the grid covers the largest phase

    const Axis &rows = phase.rows, &columns = phase.columns;
    constexpr int U = UNIT<VECTOR>;
    int units = filters / U, oc_count = units * g.groups;
    int count = rows.count * columns.count;
    if (threadIdx.x == 0) taps[count] = Tap{};
    for (int t = threadIdx.x; t < count; t += Size::THREADS) {
        int a = t / columns.count, b = t % columns.count;
        int r = rows.first + a * rows.step, s = columns.first + b * columns.step;
        taps[t] = Tap{(a * rows.distance * g.ow + b * columns.distance) * oc_count,
                      (r * g.kw + s) * (channels / U), tap_bits(a, b, g.kh), units};
    }

    // Two adjacent threads load the 8 filters of one pixel of dy ...
    int k = threadIdx.x % 2 * (4 / U), line = threadIdx.x / 2;
    constexpr int LINES = Size::THREADS / 2;
    Pixel<VECTOR> pixel[Size::A_QUADS];
#pragma unroll
    for (int q = 0; q < Size::A_QUADS; ++q)
        pixel[q] = output_pixel<VECTOR>(phase.group * units + k,
                                        blockIdx.x * TM + line + q * LINES, phase, g, oc_count);
    // ... and TN / 4 adjacent threads load TN channels of one filter.
    int filter = threadIdx.x / (TN / 4), quad = threadIdx.x % (TN / 4) * 4;
    int depth = g.kh * g.kw * (channels / U);  // units per filter
    int channels_left = quad_left<VECTOR>(blockIdx.y * TN + quad, channels);
    int filter_start = (phase.group * filters + filter) * depth +
                       quad_start<VECTOR>(blockIdx.y * TN + quad, channels) / U;

    Quad<ELEMENT, VECTOR> next_a[Size::A_QUADS];
    Quad<float, VECTOR> next_b;
    const Tap* tap = taps;  // the next step: 8 filters of this tap, from unit f on
    int f = 0;
    auto load_next = [&] {
        Tap now = *tap;
#pragma unroll
        for (int q = 0; q < Size::A_QUADS; ++q)
            next_a[q] = next_a[q].load(dy + (int64)(pixel[q].start + now.pixel + f) * U,
                                       sees(pixel[q], now) ? (now.channels - k - f) * U : 0);
        next_b = next_b.load(weight + (int64)(filter_start + now.weight + f * U * depth) * U,
                             f * U + filter < now.channels * U ? channels_left : 0);
        f += TILE_K / U;
        if (f >= units) {
            f = 0;
            ++tap;
        }
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < Size::A_QUADS; ++q)
            store_transposed(tile.a, k * U, line + q * LINES, next_a[q].floats());
        store4(&tile.b[filter][quad], rounded<ELEMENT>(next_b.floats()));
    };

    float sum[8][8] = {};
    __syncthreads();  // the table is complete
    int steps = count * ceil_div(filters, TILE_K);
    if (steps > 0) multiply_steps<TM, TN>(steps, tiles, load_next, store_next, sum);

    int column = blockIdx.y * TN + lane_column<TM, TN>();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int m = blockIdx.x * TM + lane_row<TM, TN>() + row_of(i);
        if (m >= phase.pixels) break;
        int across = columns.phase + m % columns.pixels * g.stride_w;
        int down = rows.phase + m / columns.pixels % rows.pixels * g.stride_h;
        int64 n = m / columns.pixels / rows.pixels;
        int64 at = ((n * g.h + down) * g.w + across) * g.c + phase.group * channels + column;
        if (mask) {
            mask_elements<VECTOR>(sum[i], mask + at, channels - column, mask_scale);
            mask_elements<VECTOR>(sum[i] + 4, mask + at + 32, channels - column - 32, mask_scale);
        }
        store_elements(dx + at, sum[i], channels - column, VECTOR);
        store_elements(dx + at + 32, sum[i] + 4, channels - column - 32, VECTOR);
    }
}

extern "C" __global__ __launch_bounds__(256, 2) wide_offsets void conv2d_grad_input_128x128_vector(
    const ELEMENT* dy, const float* weight, const IMAGE* mask, IMAGE* dx, Geometry g, int channels,
    int filters, float mask_scale) {
    grad_input<128, 128, true>(dy, weight, mask, dx, g, channels, filters, mask_scale);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_input_128x64_vector(
    const ELEMENT* dy, const float* weight, const IMAGE* mask, IMAGE* dx, Geometry g, int channels,
    int filters, float mask_scale) {
    grad_input<128, 64, true>(dy, weight, mask, dx, g, channels, filters, mask_scale);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_grad_input_128x64_scalar(
    const ELEMENT* dy, const float* weight, const IMAGE* mask, IMAGE* dx, Geometry g, int channels,
    int filters, float mask_scale) {
    grad_input<128, 64, false>(dy, weight, mask, dx, g, channels, filters, mask_scale);
}
