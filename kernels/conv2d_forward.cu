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
//   x       (N, H, W, C)             one tap of one pixel: `channels` contiguous floats
//   weight  (OC, KH, KW, channels)   one filter: K contiguous floats
//   bias    (OC), or null
//   y       (N, OH, OW, OC)          written (=)
//   channels = C / groups, filters = OC / groups: those of one group
//
// Three ways to load x and weight:
//   vector  channels divisible by 4, at most 2^32 floats in x: 16-byte loads
//   scalar  any number of channels; the last step of each tap is padded with zeros to 8
//   few     K <= 512, taps not padded: for a first layer, whose 3 channels would waste 5 of
//           8 multiply-adds.  The table then has one entry per element of K
// All need kh + kw <= 31, and fewer than 2^31 - 128 pixels, floats in an image and floats in
// weight; the plain kernel handles anything larger.
//
// 128 x 128: 256 threads, at most 128 registers each: 16 warps per multiprocessor.
// 128 x 64: 128 threads, at most 168 registers each: 12 warps per multiprocessor.
// In AlexNet for CIFAR-10 the first layer uses `few`, the others `vector`.

#include "common.cuh"
#include "conv2d_gather.cuh"
#include "gemm_tile.cuh"

constexpr int FEW_K = 512;          // table entries: 8 KiB, three blocks fit in 64 KiB
constexpr uint32 NEVER = 1u << 31;  // a bit that no Pixel::on_image has

// Where output pixel m starts to read, and which taps of its window are on the image.
// first: the unit of the first channel that the thread reads.
template <bool VECTOR>
__device__ inline Pixel<VECTOR> input_pixel(int first, int m, int count, const Geometry& g) {
    int j = m % g.ow, i = m / g.ow % g.oh, n = m / g.ow / g.oh;
    int row = i * g.stride_h - g.top, column = j * g.stride_w - g.left;
    uint32 on_image = bits_inside(row, g.dilation_h, g.kh, g.h, 0) |
                      bits_inside(column, g.dilation_w, g.kw, g.w, g.kh);
    int64 start = (((int64)n * g.h + row) * g.w + column) * (g.c / UNIT<VECTOR>) + first;
    bool exists = m < count;  // past the end: an offset that cannot overflow
    return {(typename Pixel<VECTOR>::Offset)(exists ? start : 0), exists ? on_image : 0};
}

// c: units per pixel of x; channels: units per tap.
__device__ inline Tap input_tap(int tap, const Geometry& g, int c, int channels) {
    int r = tap / g.kw, s = tap % g.kw;
    return Tap{(r * g.dilation_h * g.w + s * g.dilation_w) * c, tap * channels,
               tap_bits(r, s, g.kh), channels};
}

// The epilogue: adds the bias, applies ReLU and stores this thread's 8 x 8 results.
template <int TM, int TN>
__device__ inline void write_results(const float (&sum)[8][8], const float* bias, float* y,
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
        float* to = y + (int64)m * oc_count + blockIdx.z * filters + column;
        store_quad(to, result, filters - column, vector);
        store_quad(to + 32, result + 4, filters - column - 32, vector);
    }
}

template <int TM, int TN, bool VECTOR>
__device__ inline void forward(const float* x, const float* weight, const float* bias, float* y,
                               const Geometry& g, int channels, int filters, int relu) {
    using T = Tile<TM, TN>;
    __shared__ SharedTile<TM, TN> tiles[2];
    __shared__ Tap taps[MAX_TAPS];
    constexpr int U = UNIT<VECTOR>;
    int count = g.kh * g.kw, units = channels / U;
    for (int t = threadIdx.x; t <= count; t += T::THREADS)
        taps[t] = t < count ? input_tap(t, g, g.c / U, units) : Tap{};

    // Two adjacent threads load the 8 channels of one pixel, and of one filter.
    int k = threadIdx.x % 2 * (4 / U), line = threadIdx.x / 2;
    constexpr int LINES = T::THREADS / 2;
    Pixel<VECTOR> pixel[T::A_QUADS];
    int filter[T::B_QUADS];
#pragma unroll
    for (int q = 0; q < T::A_QUADS; ++q)
        pixel[q] = input_pixel<VECTOR>(blockIdx.z * units + k,
                                       blockIdx.x * TM + line + q * LINES, g.n * g.oh * g.ow, g);
#pragma unroll
    for (int q = 0; q < T::B_QUADS; ++q) {
        int f = min(blockIdx.y * TN + line + q * LINES, filters - 1);  // past the end: any filter
        filter[q] = (blockIdx.z * filters + f) * count * units + k;
    }

    float4 next_a[T::A_QUADS], next_b[T::B_QUADS];
    const Tap* tap = taps;  // the next step: 8 channels of this tap, from unit c on
    int c = 0;
    auto load_next = [&] {
        Tap now = *tap;
        int left = (now.channels - k - c) * U;
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            next_a[q] = load_quad<VECTOR>(x + (int64)(pixel[q].start + now.pixel + c) * U,
                                          sees(pixel[q], now) ? left : 0);
#pragma unroll
        for (int q = 0; q < T::B_QUADS; ++q)
            next_b[q] = load_quad<VECTOR>(weight + (int64)(filter[q] + now.weight + c) * U, left);
        c += TILE_K / U;
        if (c >= units) {
            c = 0;
            ++tap;
        }
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            store_transposed(tile.a, k * U, line + q * LINES, next_a[q]);
#pragma unroll
        for (int q = 0; q < T::B_QUADS; ++q)
            store_transposed(tile.b, k * U, line + q * LINES, next_b[q]);
    };

    float sum[8][8] = {};
    __syncthreads();  // the table is complete
    multiply_steps<TM, TN>(count * ceil_div(channels, TILE_K), tiles, load_next, store_next, sum);
    write_results<TM, TN>(sum, bias, y, g, filters, relu);
}

template <int TM, int TN>
__device__ inline void forward_few(const float* x, const float* weight, const float* bias, float* y,
                                   const Geometry& g, int channels, int filters, int relu) {
    using T = Tile<TM, TN>;
    __shared__ SharedTile<TM, TN> tiles[2];
    __shared__ Tap table[FEW_K + TILE_K];
    int depth = g.kh * g.kw * channels;  // K
    int steps = ceil_div(depth, TILE_K);
    for (int at = threadIdx.x; at < (steps + 1) * TILE_K; at += T::THREADS) {
        Tap tap = {0, 0, NEVER, 0};  // past the end of K
        if (at < depth) {
            tap = input_tap(at / channels, g, g.c, channels);
            tap.pixel += at % channels;
        }
        table[at] = tap;  // one 16-byte store: four separate ones would conflict in their banks
    }

    int k = threadIdx.x % 2 * 4, line = threadIdx.x / 2;
    constexpr int LINES = T::THREADS / 2;
    Pixel<false> pixel[T::A_QUADS];
    int filter[T::B_QUADS];
#pragma unroll
    for (int q = 0; q < T::A_QUADS; ++q)
        pixel[q] = input_pixel<false>(blockIdx.z * channels, blockIdx.x * TM + line + q * LINES,
                                      g.n * g.oh * g.ow, g);
#pragma unroll
    for (int q = 0; q < T::B_QUADS; ++q) {
        int f = min(blockIdx.y * TN + line + q * LINES, filters - 1);
        filter[q] = (blockIdx.z * filters + f) * depth;
    }

    float next_a[T::A_QUADS][4];
    float4 next_b[T::B_QUADS];
    int at = k;  // the next step: at .. at + 3 of K
    auto load_next = [&] {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            Tap now = table[at + i];
#pragma unroll
            for (int q = 0; q < T::A_QUADS; ++q)
                next_a[q][i] = sees(pixel[q], now) ? x[pixel[q].start + now.pixel] : 0.0f;
        }
#pragma unroll
        for (int q = 0; q < T::B_QUADS; ++q)
            next_b[q] = load_quad<false>(weight + (filter[q] + at), depth - at);
        at += TILE_K;
    };
    auto store_next = [&](SharedTile<TM, TN>& tile) {
#pragma unroll
        for (int q = 0; q < T::A_QUADS; ++q)
            store_transposed(tile.a, k, line + q * LINES,
                             make_float4(next_a[q][0], next_a[q][1], next_a[q][2], next_a[q][3]));
#pragma unroll
        for (int q = 0; q < T::B_QUADS; ++q)
            store_transposed(tile.b, k, line + q * LINES, next_b[q]);
    };

    float sum[8][8] = {};
    __syncthreads();
    multiply_steps<TM, TN>(steps, tiles, load_next, store_next, sum);
    write_results<TM, TN>(sum, bias, y, g, filters, relu);
}

extern "C" __global__ __launch_bounds__(256, 2) wide_offsets void conv2d_forward_128x128_vector(
    const float* x, const float* weight, const float* bias, float* y, Geometry g, int channels,
    int filters, int relu) {
    forward<128, 128, true>(x, weight, bias, y, g, channels, filters, relu);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_forward_128x64_vector(
    const float* x, const float* weight, const float* bias, float* y, Geometry g, int channels,
    int filters, int relu) {
    forward<128, 64, true>(x, weight, bias, y, g, channels, filters, relu);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_forward_128x64_scalar(
    const float* x, const float* weight, const float* bias, float* y, Geometry g, int channels,
    int filters, int relu) {
    forward<128, 64, false>(x, weight, bias, y, g, channels, filters, relu);
}

extern "C" __global__ __launch_bounds__(128, 3) wide_offsets void conv2d_forward_128x64_few(
    const float* x, const float* weight, const float* bias, float* y, Geometry g, int channels,
    int filters, int relu) {
    forward_few<128, 64>(x, weight, bias, y, g, channels, filters, relu);
}
