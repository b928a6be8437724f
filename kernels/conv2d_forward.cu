// y = relu(conv(x, weight) + bias) as an implicit matrix product; the left matrix is never stored:
//
//     Y (M x OC)  =  X (M x K)  *  WEIGHT (K x OC)     M = N * OH * OW pixels, K = KH * KW * C
//
//   block   TM pixels x TN filters of one group     grid: pixel tiles, filter tiles, groups
//   warp    32 pixels x 64 filters
//   thread  8 x 8 results (gemm_tile.cuh)
//   step    8 of K: 8 channels of one tap.  While a step is multiplied, the next one travels from
//           global memory through registers into the other shared buffer
//
//   x       (N, H, W, C) IMAGE              one tap of one pixel: `channels` contiguous numbers
//   weight  (OC, KH, KW, channels) float    one filter: K contiguous numbers
//   bias    (OC) float, or null
//   y       (N, OH, OW, OC) ELEMENT         written (=)
//   channels = C / groups, filters = OC / groups: those of one group
//
// IMAGE and ELEMENT are float, half or bfloat16.  Operands have the precision of ELEMENT: floats are
// rounded to it when they have been loaded.  Sums are float.
//
// Three ways to load x and weight:
//   vector  channels divisible by 4, at most 2^32 numbers in x: loads of 4 numbers
//   scalar  any number of channels; the last step of each tap is padded with zeros to 8
//   few     K <= 512, taps not padded: for a first layer, whose 3 channels would waste 5 of
//           8 multiply-adds.  The table then has one entry per element of K
// All need kh + kw <= 31, and fewer than 2^31 - 128 pixels, numbers in an image and numbers in
// weight; the plain kernel handles anything larger.
//
// 128 x 128: 256 threads, at most 128 registers each: 16 warps per multiprocessor.
// 128 x 64: 128 threads, at most 168 registers each: 12 warps per multiprocessor.
// In AlexNet for CIFAR-10 the first layer uses `few`, the others `vector`.

#include "common.cuh"
#include "conv2d_gather.cuh"
#include "gemm_tile.cuh"
#include "quad_stores.cuh"
#include "quads.cuh"

#ifndef IMAGE
#define IMAGE float
#endif
#ifndef ELEMENT
#define ELEMENT float
#endif

constexpr int FEW_K = 512;          // table entries: 8 KiB, three blocks fit in 64 KiB
constexpr uint32 NEVER = 1u << 31;  // a bit that no Pixel::on_image has

// What was loaded, as factors.
template <class E, bool VECTOR>
__device__ inline float4 operand(const Quad<E, VECTOR>& quad) {
    return sizeof(E) == sizeof(ELEMENT) ? quad.floats() : rounded<ELEMENT>(quad.floats());
}

// The epilogue: adds the bias, applies ReLU and stores this thread's 8 x 8 results.
template <int TM, int TN>
__device__ inline void write_results(const float (&sum)[8][8], const float* bias, ELEMENT* y,
                                     const Geometry& g, int filters, int relu) {
    int pixels = g.n * g.oh * g.ow, oc_count = filters * g.groups;
    int row = blockIdx.x * TM + lane_row<TM, TN>();
    int column = blockIdx.y * TN + lane_column<TM, TN>();
    bool vector = filters % 4 == 0;
    float offset[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        int filter = column + column_of(j);
        offset[j] = bias && filter < filters ? bias[blockIdx.z * filters + filter] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int m = row + row_of(i);
        if (m >= pixels) break;
        float result[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float value = sum[i][j] + offset[j];
            result[j] = relu && value < 0.0f ? 0.0f : value;  // NaN passes through
        }
        ELEMENT* to = y + (int64)m * oc_count + blockIdx.z * filters + column;
        store_elements(to, result, filters - column, vector);
        store_elements(to + 32, result + 4, filters - column - 32, vector);
    }
}

template <int TM, int TN, bool VECTOR>
__device__ inline void forward(const IMAGE* x, const float* weight, const float* bias, ELEMENT* y,
                               const Geometry& g, int channels, int filters, int relu) {
    using Size = Tile<TM, TN>;
    __shared__ SharedTile<TM, TN> tiles[2];
    __shared__ Tap taps[MAX_TAPS];
    constexpr int U = UNIT<VECTOR>;
    int count = g.kh * g.kw, units = channels / U;
    for (int t = threadIdx.x; t <= count; t += Size::THREADS)
        taps[t] = t < count ? input_tap(t, g, g.c / U, units) : Tap{};

    // Two adjacent threads load the 8 channels of one pixel, and of one filter.
    int k = threadIdx.x % 2 * (4 / U), line = threadIdx.x / 2;
    constexpr int LINES = Size::THREADS / 2;
    Pixel<VECTOR> pixel[Size::A_QUADS];
    int filter[Size::B_QUADS];
#pragma unroll
    for (int q = 0; q < Size::A_QUADS; ++q)
        pixel[q] = input_pixel<VECTOR>(blockIdx.z * units + k,
                                       blockIdx.x * TM + line + q * LINES, g.n * g.oh * g.ow, g);
#pragma unroll
    for (int q = 0; q < Size::B_QUADS; ++q) {
        int f = min(blockIdx.y * TN + line + q * LINES, filters - 1);  // past the end: any filter
        filter[q] = (blockIdx.z * filters + f) * count * units + k;
    }

    Quad<IMAGE, VECTOR> next_a[Size::A_QUADS];
    Quad<float, VECTOR> next_b[Size::B_QUADS];
    const Tap* tap = taps;  // the next step: 8 channels of this tap, from unit c on
    int c = 0;
    auto load_next = [&] {
        Tap now = *tap;
        int left = (now.channels - k - c) * U;
#pragma unroll
        for (int q = 0; q < Size::A_QUADS; ++q)
            next_a[q] = next_a[q].load(x + (int64)(pixel[q].start + now.pixel + c) * U,
                                       sees(pixel[q], now) ? left : 0);
#pragma unroll
        for (int q = 0; q < Size::B_QUADS; ++q)
            next_b[q] = next_b[q].load(weight + (int64)(filter[q] + now.weight + c) * U, left);
        c += TILE_K / U;
        if (c >= units) {
            c = 0;
            ++tap;
        }
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < Size::A_QUADS; ++q)
            store_transposed(tile.a, k * U, line + q * LINES, operand(next_a[q]));
#pragma unroll
        for (int q = 0; q < Size::B_QUADS; ++q)
            store_transposed(tile.b, k * U, line + q * LINES, operand(next_b[q]));
    };

    float sum[8][8] = {};
    __syncthreads();  // the table is complete
    multiply_steps<TM, TN>(count * ceil_div(channels, TILE_K), tiles, load_next, store_next, sum);
    write_results<TM, TN>(sum, bias, y, g, filters, relu);
}

template <int TM, int TN>
__device__ inline void forward_few(const IMAGE* x, const float* weight, const float* bias,
                                   ELEMENT* y, const Geometry& g, int channels, int filters,
                                   int relu) {
    using Size = Tile<TM, TN>;
    __shared__ SharedTile<TM, TN> tiles[2];
    __shared__ Tap table[FEW_K + TILE_K];
    int depth = g.kh * g.kw * channels;  // K
    int steps = ceil_div(depth, TILE_K);
    for (int at = threadIdx.x; at < (steps + 1) * TILE_K; at += Size::THREADS) {
        Tap tap = {0, 0, NEVER, 0};  // past the end of K
        if (at < depth) {
            tap = input_tap(at / channels, g, g.c, channels);
            tap.pixel += at % channels;
        }
        table[at] = tap;  // one 16-byte store: four separate ones would conflict in their banks
    }

    int k = threadIdx.x % 2 * 4, line = threadIdx.x / 2;
    constexpr int LINES = Size::THREADS / 2;
    Pixel<false> pixel[Size::A_QUADS];
    int filter[Size::B_QUADS];
#pragma unroll
    for (int q = 0; q < Size::A_QUADS; ++q)
        pixel[q] = input_pixel<false>(blockIdx.z * channels, blockIdx.x * TM + line + q * LINES,
                                      g.n * g.oh * g.ow, g);
#pragma unroll
    for (int q = 0; q < Size::B_QUADS; ++q) {
        int f = min(blockIdx.y * TN + line + q * LINES, filters - 1);
        filter[q] = (blockIdx.z * filters + f) * depth;
    }

    Quad<IMAGE, false> next_a[Size::A_QUADS];
    Quad<float, false> next_b[Size::B_QUADS];
    int at = k;  // the next step: at .. at + 3 of K
    auto load_next = [&] {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            Tap now = table[at + i];
#pragma unroll
            for (int q = 0; q < Size::A_QUADS; ++q)
                next_a[q].v[i] = sees(pixel[q], now) ? x[pixel[q].start + now.pixel] : IMAGE{};
        }
#pragma unroll
        for (int q = 0; q < Size::B_QUADS; ++q)
            next_b[q] = next_b[q].load(weight + (filter[q] + at), depth - at);
        at += TILE_K;
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < Size::A_QUADS; ++q)
            store_transposed(tile.a, k, line + q * LINES, operand(next_a[q]));
#pragma unroll
        for (int q = 0; q < Size::B_QUADS; ++q)
            store_transposed(tile.b, k, line + q * LINES, operand(next_b[q]));
    };

    float sum[8][8] = {};
    __syncthreads();
    multiply_steps<TM, TN>(steps, tiles, load_next, store_next, sum);
    write_results<TM, TN>(sum, bias, y, g, filters, relu);
}

extern "C" __global__ __launch_bounds__(256, 2) wide_offsets void conv2d_forward_128x128_vector(
    const IMAGE* x, const float* weight, const float* bias, ELEMENT* y, Geometry g, int channels,
    int filters, int relu) {
    forward<128, 128, true>(x, weight, bias, y, g, channels, filters, relu);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_forward_128x64_vector(
    const IMAGE* x, const float* weight, const float* bias, ELEMENT* y, Geometry g, int channels,
    int filters, int relu) {
    forward<128, 64, true>(x, weight, bias, y, g, channels, filters, relu);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_forward_128x64_scalar(
    const IMAGE* x, const float* weight, const float* bias, ELEMENT* y, Geometry g, int channels,
    int filters, int relu) {
    forward<128, 64, false>(x, weight, bias, y, g, channels, filters, relu);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_forward_128x64_few(
    const IMAGE* x, const float* weight, const float* bias, ELEMENT* y, Geometry g, int channels,
    int filters, int relu) {
    forward_few<128, 64>(x, weight, bias, y, g, channels, filters, relu);
}
